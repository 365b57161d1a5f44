/* ggml asks between the nodes of a graph whether to stop. This passes the question on, which is Python's to answer, but
   only once in a while. abort_poll.py has the same structure. */

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct abort_poll {
    int64_t next_ns;   /* when to ask next, on the monotonic clock; 0: a period after the first node */
    int64_t period_ns;
    bool (*ask)(void);
    bool stop;
};

bool on_poll(struct abort_poll *poll) {
    struct timespec now;
    if (poll->stop) return true;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t now_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (poll->next_ns && now_ns >= poll->next_ns) poll->stop = poll->ask();
    if (!poll->next_ns || now_ns >= poll->next_ns) poll->next_ns = now_ns + poll->period_ns;
    return poll->stop;
}
