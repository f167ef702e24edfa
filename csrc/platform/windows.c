/* windows.c: Windows 7 and later. */

#include "../platform.h"

#ifdef SL_PLATFORM_WINDOWS

#if !defined(_WIN32_WINNT) || _WIN32_WINNT < 0x0601
#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0601
#endif
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX

#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <stdlib.h>
#include <windows.h>

/* These headers need windows.h. */
#include <ntsecapi.h>
#include <shellapi.h>

_Static_assert(sizeof(sl_mutex) == sizeof(SRWLOCK), "platform.h has the size of a lock");
_Static_assert(sizeof(sl_condition) == sizeof(CONDITION_VARIABLE), "and of a condition");

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Large pages need a privilege that users do not have. */
void *sl_pages_new(size_t bytes, bool huge) {
    (void)huge;
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void sl_pages_make_small(void *start, size_t bytes) {
    (void)start, (void)bytes;
}

void sl_pages_free(void *pages, size_t bytes) {
    MEMORY_BASIC_INFORMATION about;
    (void)bytes;
    if (!pages || !VirtualQuery(pages, &about, sizeof about)) return;
    if (about.Type == MEM_MAPPED)
        UnmapViewOfFile(pages);
    else
        VirtualFree(pages, 0, MEM_RELEASE);
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* Return the error number of the last call. */
static int failure_of_system(void) {
    switch (GetLastError()) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME:
    case ERROR_INVALID_DRIVE:
    case ERROR_BAD_NETPATH:
    case ERROR_NO_UNICODE_TRANSLATION:
        return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION:
        return EACCES;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
    case ERROR_COMMITMENT_LIMIT:
        return ENOMEM;
    case ERROR_TOO_MANY_OPEN_FILES:
        return EMFILE;
    default:
        return EIO;
    }
}

/* Convert UTF-8 to a text that the caller frees. Returns NULL after an error. */
static wchar_t *widen(const char *text) {
    const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
    wchar_t *wide = length > 0 ? malloc((size_t)length * sizeof *wide) : NULL;
    if (wide) MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, wide, length);
    return wide;
}

int sl_file_open(sl_file *file, const char *path) {
    const DWORD shared = FILE_SHARE_READ | FILE_SHARE_DELETE;
    wchar_t *wide = widen(path);
    if (!wide) return failure_of_system();
    /* The flag opens folders too, which the caller then rejects. */
    HANDLE handle = CreateFileW(wide, GENERIC_READ, shared, NULL, OPEN_EXISTING,
                                FILE_FLAG_BACKUP_SEMANTICS, NULL);
    const int failure = handle == INVALID_HANDLE_VALUE ? failure_of_system() : 0;
    free(wide);
    if (failure) return failure;
    BY_HANDLE_FILE_INFORMATION about;
    *file = (sl_file){.handle = (intptr_t)handle};
    if (GetFileType(handle) != FILE_TYPE_DISK || !GetFileInformationByHandle(handle, &about))
        return 0;
    file->bytes = (uint64_t)about.nFileSizeHigh << 32 | about.nFileSizeLow;
    file->is_regular = !(about.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY);
    return 0;
}

void sl_file_close(const sl_file *file) {
    CloseHandle((HANDLE)file->handle);
}

int sl_file_read(const sl_file *file, uint8_t *target, size_t start, size_t end) {
    enum { STEP = 1 << 30 };
    while (start < end) {
        const size_t left = end - start;
        const uint64_t at = start;
        OVERLAPPED place = {.Offset = (DWORD)at, .OffsetHigh = (DWORD)(at >> 32)};
        DWORD count;
        if (!ReadFile((HANDLE)file->handle, target, left < STEP ? (DWORD)left : STEP, &count,
                      &place))
            return GetLastError() == ERROR_HANDLE_EOF ? SL_FILE_TOO_SHORT : failure_of_system();
        if (count == 0) return SL_FILE_TOO_SHORT;
        start += count;
        target += count;
    }
    return 0;
}

int sl_file_map(const sl_file *file, size_t bytes, void **pages) {
    *pages = NULL;
    HANDLE mapping = CreateFileMappingW((HANDLE)file->handle, NULL, PAGE_READONLY, 0, 0, NULL);
    if (mapping) *pages = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, bytes);
    const int failure = *pages ? 0 : failure_of_system();
    if (mapping) CloseHandle(mapping); /* the view keeps it */
    return failure;
}

/* ---- Threads --------------------------------------------------------------------------------- */

size_t sl_processor_count(void) {
    DWORD_PTR mine, all;
    size_t count = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
        for (; mine; mine &= mine - 1) count++;
    return count ? count : 1;
}

int64_t sl_process(void) {
    return 0; /* there are no forks */
}

static unsigned __stdcall run_thread(void *argument) {
    const sl_thread *thread = argument;
    thread->run(thread->argument);
    return 0;
}

bool sl_thread_start(sl_thread *thread, void (*run)(void *argument), void *argument) {
    thread->run = run;
    thread->argument = argument;
    thread->handle = (HANDLE)_beginthreadex(NULL, 0, run_thread, thread, 0, NULL);
    return thread->handle != NULL;
}

void sl_thread_join(const sl_thread *thread) {
    WaitForSingleObject(thread->handle, INFINITE);
    CloseHandle(thread->handle);
}

void sl_thread_yield(void) {
    SwitchToThread();
}

void sl_mutex_init(sl_mutex *mutex) {
    InitializeSRWLock((SRWLOCK *)mutex);
}

void sl_mutex_destroy(sl_mutex *mutex) {
    (void)mutex;
}

void sl_mutex_lock(sl_mutex *mutex) {
    AcquireSRWLockExclusive((SRWLOCK *)mutex);
}

void sl_mutex_unlock(sl_mutex *mutex) {
    ReleaseSRWLockExclusive((SRWLOCK *)mutex);
}

void sl_condition_init(sl_condition *condition) {
    InitializeConditionVariable((CONDITION_VARIABLE *)condition);
}

void sl_condition_destroy(sl_condition *condition) {
    (void)condition;
}

void sl_condition_wait(sl_condition *condition, sl_mutex *mutex) {
    SleepConditionVariableSRW((CONDITION_VARIABLE *)condition, (SRWLOCK *)mutex, INFINITE, 0);
}

void sl_condition_wake_all(sl_condition *condition) {
    WakeAllConditionVariable((CONDITION_VARIABLE *)condition);
}

/* ---- Time and processor ---------------------------------------------------------------------- */

int64_t sl_clock(void) {
    LARGE_INTEGER frequency, now;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&now);
    const int64_t second = 1000000000, per_second = frequency.QuadPart;
    return now.QuadPart / per_second * second + now.QuadPart % per_second * second / per_second;
}

bool sl_has_dot_product(void) {
    enum { DOT_PRODUCT = 43 }; /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
    return IsProcessorFeaturePresent(DOT_PRODUCT);
}

/* Only a program that is compiled for these instructions uses them on Windows. */
bool sl_has_matrix_product(void) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    return true;
#else
    return false;
#endif
}

bool sl_request_tiles(void) {
    return false;
}

/* ---- The command-line program ---------------------------------------------------------------- */

static UINT old_code_page; /* of the console, which keeps it after the program */

static void restore_console(void) {
    SetConsoleOutputCP(old_code_page);
}

/* Called when the user presses Ctrl-C. The next handler ends the program. */
static BOOL WINAPI restore_at_interrupt(DWORD event) {
    (void)event;
    restore_console();
    return FALSE;
}

static void use_utf8_console(void) {
    old_code_page = GetConsoleOutputCP();
    if (!old_code_page || !SetConsoleOutputCP(CP_UTF8)) return; /* there is no console */
    atexit(restore_console);
    SetConsoleCtrlHandler(restore_at_interrupt, TRUE);
}

/* Convert a text to UTF-8. Half of a surrogate pair becomes U+FFFD. Returns NULL after an error. */
static char *narrow(const wchar_t *wide) {
    const int bytes = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char *text = bytes > 0 ? malloc((size_t)bytes) : NULL;
    if (text) WideCharToMultiByte(CP_UTF8, 0, wide, -1, text, bytes, NULL, NULL);
    return text;
}

/* The arguments live as long as the program. If they cannot be converted, those of main stay. */
char **sl_program_start(int *argc, char **argv) {
    use_utf8_console();
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
    int count;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &count);
    char **arguments = wide ? calloc((size_t)count + 1, sizeof *arguments) : NULL;
    bool is_complete = arguments != NULL;
    for (int i = 0; is_complete && i < count; i++)
        is_complete = (arguments[i] = narrow(wide[i])) != NULL;
    LocalFree(wide);
    if (!is_complete) return argv;
    *argc = count;
    return arguments;
}

FILE *sl_program_file(const char *path) {
    wchar_t *wide = widen(path);
    FILE *file = wide ? _wfopen(wide, L"rb") : NULL;
    const int failure = wide ? errno : ENOENT;
    free(wide);
    errno = failure;
    return file;
}

int sl_program_entropy(void *bytes, size_t count) {
    return RtlGenRandom(bytes, (ULONG)count) ? 0 : EIO;
}

#endif
