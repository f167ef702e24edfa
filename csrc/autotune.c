/* autotune.c: measures how many threads of a pool are fastest for a kind of work. */

#include "autotune.h"

enum {
    TIMED = 3,       /* timed steps of a trial */
    WAIT = 2,        /* steps between two trials, at least */
    FIRST_WAIT = 20, /* before fewer threads are tried for the first time, which is likely slow */
    RECENT_STEPS = 16,
    RECENT = 50 * 1000 * 1000,          /* nanoseconds; work before that counts less */
    LONGEST_PAUSE = 1000 * 1000 * 1000, /* before a former winner is tried again */
};

static const double WAITED = 4; /* a trial waited for a suspended thread if it took longer */

/* A choice is tried again after so many times the time that it lost. A wait for a suspended thread
 * may be bad luck, so that the pause after it is short at first and doubles each time. */
static const double PAUSE = 40, SHORT_PAUSE = 2, LONG_PAUSE = 32;
static const double CLEAR = 1.3;   /* a trial ends early if it is so many times slower or faster */
static const double BETTER = 0.97; /* a trial is won by what takes less than this */
static const double WORSE = 1.05;  /* a winner that takes more than another did is compared again */

static double cost(const sl_work *work) {
    return work->spent / work->units;
}

static void add(sl_work *work, double spent, double units) {
    work->spent += spent;
    work->units += units;
}

void sl_autotune_init(sl_autotune *tune, size_t threads, bool starts_with_one) {
    *tune = (sl_autotune){.threads = threads, .wait = starts_with_one ? WAIT : FIRST_WAIT};
    while (threads >> tune->one > 1) tune->one++;
    if (starts_with_one) tune->choice = tune->tried = tune->one;
}

static void turn_to(sl_autotune *tune, size_t choice) {
    tune->tried = choice;
    tune->steps = 0;
}

/* Return the choice for the next step: one that was faster than the current one is now, or one
 * whose pause is over, or else the current one. */
static size_t next_choice(const sl_autotune *tune, int64_t now) {
    double best = cost(&tune->choices[tune->choice].recent) / WORSE;
    size_t next = tune->choice;
    for (size_t i = 0; i <= tune->one; i++) {
        const sl_work *recent = &tune->choices[i].recent;
        if (recent->units == 0 || cost(recent) >= best) continue;
        best = cost(recent);
        next = i;
    }
    for (size_t i = 0; i <= tune->one && next == tune->choice; i++)
        if (now >= tune->choices[i].retry) next = i;
    return next;
}

size_t sl_autotune_begin(sl_autotune *tune, int64_t now) {
    if (tune->tried == tune->choice && tune->steps > tune->wait) {
        const size_t next = next_choice(tune, now);
        if (next != tune->choice) {
            turn_to(tune, next);
            tune->choices[next].recent = tune->trial = (sl_work){0};
            tune->wait = WAIT;
        }
    }
    tune->start = now;
    return tune->threads >> tune->tried;
}

/* Return a pause of some nanoseconds, but some steps at least. */
static double at_least(double pause, double step) {
    return pause > RECENT_STEPS * step ? pause : RECENT_STEPS * step;
}

/* Decide when to try a choice again that lost some nanoseconds by bad luck. */
static void retry_soon(struct sl_choice *choice, bool is_first, int64_t now, double lost,
                       double step) {
    choice->pause = is_first || choice->pause == 0 ? SHORT_PAUSE : 2 * choice->pause;
    if (choice->pause > LONG_PAUSE) choice->pause = LONG_PAUSE;
    const double pause = at_least(choice->pause * lost, step);
    choice->retry = now + (int64_t)(pause < LONGEST_PAUSE ? pause : LONGEST_PAUSE);
}

/* Stay with the choice that was tried. */
static void win(sl_autotune *tune, int64_t now, double step) {
    const double usual = tune->stay.units * cost(&tune->choices[tune->tried].recent);
    const bool was_long = tune->stay.spent > RECENT;
    retry_soon(&tune->choices[tune->choice], was_long, now, tune->stay.spent - usual, step);
    tune->choice = tune->tried;
    tune->stay = tune->trial;
}

/* Return to the choice before the trial. */
static void lose(sl_autotune *tune, int64_t now, double step) {
    struct sl_choice *tried = &tune->choices[tune->tried];
    const double usual = tune->trial.units * cost(&tune->choices[tune->choice].recent);
    const double lost = tune->trial.spent - usual, others = (double)tune->one;
    const size_t fewer = tune->tried > tune->choice ? tune->tried - tune->choice : 0;
    if (tune->trial.spent > WAITED * usual * (double)((size_t)1 << fewer))
        retry_soon(tried, false, now, others * lost, step);
    else
        tried->retry = now + (int64_t)(others * at_least(PAUSE * lost, step));
    turn_to(tune, tune->choice);
}

static void judge_trial(sl_autotune *tune, int64_t now, double step) {
    const double usual = cost(&tune->choices[tune->choice].recent);
    const double ratio = cost(&tune->choices[tune->tried].recent) / usual;
    const bool is_complete = tune->steps > TIMED;
    if (ratio < (is_complete ? BETTER : 1 / CLEAR))
        win(tune, now, step);
    else if (is_complete || ratio > CLEAR)
        lose(tune, now, step);
}

void sl_autotune_end(sl_autotune *tune, int64_t now, size_t units) {
    const bool is_trial = tune->tried != tune->choice;
    const double step = (double)(now - tune->start);
    add(is_trial ? &tune->trial : &tune->stay, step, (double)units);
    if (tune->steps++ == 0) return;
    sl_work *recent = &tune->choices[tune->tried].recent;
    add(recent, step, (double)units);
    if (is_trial) {
        judge_trial(tune, now, step);
    } else if (recent->spent > RECENT && recent->spent > RECENT_STEPS * step) {
        recent->spent /= 2;
        recent->units /= 2;
    }
}
