# Installs the header, libraries, pkg-config file, program, manual page and shell completion:
#
#   make install        PREFIX=, LIBDIR=, DESTDIR=
#   make uninstall
#
# Paths may contain spaces: recipes take them from the environment, in quotes.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
OBJCOPY ?= objcopy
export PREFIX LIBDIR DESTDIR

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' ../pyproject.toml)
# Increases if programs that use the shared library must be compiled again.
ABI := 0

STAGE = $(BUILD)/install
COMPLETIONS := ../storyllamas/completions/storyllamas
ifeq ($(shell uname -s),Darwin)
REAL := libstoryllamas.$(ABI).dylib
LINK := libstoryllamas.dylib
SONAME = -dynamiclib -install_name "$$LIBDIR/$(REAL)"
else
REAL := libstoryllamas.so.$(ABI)
LINK := libstoryllamas.so
SONAME = -shared -Wl,-soname,$(REAL)
endif

# Each installed file, below DESTDIR.
HEADER_PATH = $$DESTDIR$$PREFIX/include/storyllamas.h
STATIC_PATH = $$DESTDIR$$LIBDIR/libstoryllamas.a
SHARED_PATH = $$DESTDIR$$LIBDIR/$(REAL)
LINK_PATH = $$DESTDIR$$LIBDIR/$(LINK)
PC_PATH = $$DESTDIR$$LIBDIR/pkgconfig/storyllamas.pc
PROGRAM_PATH = $$DESTDIR$$PREFIX/bin/storyllamas-run
MAN_PATH = $$DESTDIR$$PREFIX/share/man/man1/storyllamas-run.1
BASH_PATH = $$DESTDIR$$PREFIX/share/bash-completion/completions/storyllamas
FISH_PATH = $$DESTDIR$$PREFIX/share/fish/vendor_completions.d/storyllamas.fish
ZSH_PATH = $$DESTDIR$$PREFIX/share/zsh/site-functions/_storyllamas

.PHONY: install uninstall
install: $(BUILD)/run $(STAGE)/$(REAL) $(STAGE)/libstoryllamas.a
	install -d "$$DESTDIR$$PREFIX/bin" "$$DESTDIR$$PREFIX/include" "$$DESTDIR$$LIBDIR/pkgconfig" \
		"$$DESTDIR$$PREFIX/share/man/man1" "$$DESTDIR$$PREFIX/share/bash-completion/completions" \
		"$$DESTDIR$$PREFIX/share/fish/vendor_completions.d" "$$DESTDIR$$PREFIX/share/zsh/site-functions"
	install -m 644 storyllamas.h "$(HEADER_PATH)"
	install -m 644 $(STAGE)/libstoryllamas.a "$(STATIC_PATH)"
	install -m 755 $(STAGE)/$(REAL) "$(SHARED_PATH)"
	ln -sf $(REAL) "$(LINK_PATH)"
	printf '%s\n' "prefix=$$PREFIX" "libdir=$$LIBDIR" 'includedir=$${prefix}/include' '' \
		'Name: StoryLlamas' 'Description: Generates stories with small Llama models' \
		'Version: $(VERSION)' 'Libs: -L"$${libdir}" -lstoryllamas' 'Libs.private: -lm -pthread' \
		'Cflags: -I"$${includedir}"' > "$(PC_PATH)"
	chmod 644 "$(PC_PATH)"
	install -m 755 $(BUILD)/run "$(PROGRAM_PATH)"
	install -m 644 storyllamas-run.1 "$(MAN_PATH)"
	install -m 644 $(COMPLETIONS).bash "$(BASH_PATH)"
	install -m 644 $(COMPLETIONS).fish "$(FISH_PATH)"
	install -m 644 $(COMPLETIONS).zsh "$(ZSH_PATH)"

uninstall:
	rm -f "$(HEADER_PATH)" "$(STATIC_PATH)" "$(SHARED_PATH)" "$(LINK_PATH)" "$(PC_PATH)" \
		"$(PROGRAM_PATH)" "$(MAN_PATH)" "$(BASH_PATH)" "$(FISH_PATH)" "$(ZSH_PATH)"

# Both libraries have the same object code. Its hidden symbols become local, so that the static
# library defines sl_… alone; the linker of macOS does that by itself.
$(STAGE)/library.o: $(LIBRARY) $(HEADERS) Makefile install.mk
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -fPIC -r -nostdlib -o $@ $(LIBRARY)
ifneq ($(shell uname -s),Darwin)
	$(OBJCOPY) --localize-hidden $@
endif

$(STAGE)/$(REAL): $(STAGE)/library.o
	$(CC) $(CFLAGS) $(SONAME) -o $@ $< $(LDFLAGS) -lm -pthread

$(STAGE)/libstoryllamas.a: $(STAGE)/library.o
	rm -f $@
	$(AR) rcs $@ $<
