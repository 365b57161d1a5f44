/* ggml's scheduler asks about every node of a graph, some 30 a layer, whether somebody wants to see it. This answers
   without Python: one node may be written over with rows that come from another stage, and one is copied to where this
   stage's rows belong; behind that one the graph stops. hidden.py says the same in Python. */

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct hidden {
    const char *entry, *exit; /* names of nodes */
    const void *entry_rows;
    void *exit_rows;
    size_t bytes;         /* of either */
    size_t entered, left; /* bytes that were written over and copied */
    const char *(*name_of)(const void *tensor);
    size_t (*bytes_of)(const void *tensor);
    void (*get)(const void *tensor, void *data, size_t offset, size_t size);
    void (*set)(void *tensor, const void *data, size_t offset, size_t size);
};

bool on_node(void *tensor, bool ask, struct hidden *hidden) {
    const char *name = hidden->name_of(tensor);
    bool is_exit = strcmp(name, hidden->exit) == 0;
    bool is_entry = !hidden->entered && strcmp(name, hidden->entry) == 0;
    if (ask) return is_exit || is_entry;
    if (hidden->bytes_of(tensor) != hidden->bytes) return true;
    if (is_entry) {
        hidden->set(tensor, hidden->entry_rows, 0, hidden->bytes);
        hidden->entered = hidden->bytes;
    }
    if (is_exit) {
        hidden->get(tensor, hidden->exit_rows, 0, hidden->bytes);
        hidden->left = hidden->bytes;
    }
    return !is_exit;
}
