/* Scans damaged copies of a text, for AddressSanitizer: driver FILE TIMES SEED. */

#include <stdio.h>
#include <stdlib.h>

#include "../../profiling/trace/scan.c"

static const char *KEYS[] = {"pid", "tid", "correlation", "stream", "device", "External id", "name", "bytes", "dtype",
                             "Input Dims", "Call stack", "Collective name"};
enum { NUM_KEYS = sizeof KEYS / sizeof *KEYS, NUM_COLUMNS = 6 };

static void *room(int64_t count, size_t width) { return malloc(count ? (size_t)count * width : 1); }

static Words words_of(int64_t num_slots) {
    return (Words){.slots = calloc(num_slots, 4), .num_slots = num_slots, .begin = room(num_slots / 2, 8),
                   .end = room(num_slots / 2, 8)};
}

static void free_words(Words *words) { free(words->slots); free(words->begin); free(words->end); }

/* Changes, swaps or cuts a few bytes; returns the new length. */
static int64_t damage(uint8_t *text, int64_t length) {
    static const char LIKELY[] = "\"\\{}[],:0-9.eE tfnN\n";
    if (rand() % 4 == 0) length = length ? rand() % length : 0;
    for (int i = rand() % 4; i > 0 && length; i--) {
        int64_t at = rand() % length;
        text[at] = rand() % 3 ? (uint8_t)LIKELY[rand() % (sizeof LIKELY - 1)] : (uint8_t)rand();
    }
    return length;
}

static int try_one(const uint8_t *whole, int64_t size) {
    int64_t begin = size ? rand() % size : 0, length = size - begin;
    while (length && whole[begin] != '{') begin++, length--;
    if (length > 4096) length = rand() % 4096;
    uint8_t *text = room(length, 1), *keys = room(1 << 10, 1);
    memcpy(text, whole + begin, length);
    length = damage(text, length);
    text = realloc(text, length ? length : 1);
    int64_t ends[NUM_KEYS], at = 0;
    for (int i = 0; i < NUM_KEYS; i++) {
        memcpy(keys + at, KEYS[i], strlen(KEYS[i]));
        ends[i] = at += strlen(KEYS[i]);
    }
    int64_t rows = rand() % 40, values = rand() % 200;
    Job job = {.text = text, .length = length, .keys = keys, .key_ends = ends, .num_keys = NUM_KEYS,
               .num_columns = NUM_COLUMNS, .max_rows = rows, .max_values = values, .ts = room(rows, 8),
               .dur = room(rows, 8), .columns = room(rows * NUM_COLUMNS, 8), .phase = room(rows, 4),
               .category = room(rows, 4), .name = room(rows, 4), .categories = words_of(8), .names = words_of(64),
               .value_row = room(values, 8), .value_key = room(values, 8), .value_form = room(values, 8),
               .value = room(values, 8), .value_begin = room(values, 8), .value_end = room(values, 8)};
    int status = scan(&job);
    for (int64_t i = 0; i < job.num_values; i++)
        if (job.value_begin[i] < 0 || job.value_end[i] < job.value_begin[i] || job.value_end[i] > length) abort();
    void *all[] = {text, keys, job.ts, job.dur, job.columns, job.phase, job.category, job.name, job.value_row,
                   job.value_key, job.value_form, job.value, job.value_begin, job.value_end};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free_words(&job.categories);
    free_words(&job.names);
    return status == DONE;
}

int main(int argc, char **argv) {
    static uint8_t whole[1 << 20];
    FILE *file = argc == 4 ? fopen(argv[1], "rb") : NULL;
    if (!file) return 2;
    int64_t size = (int64_t)fread(whole, 1, sizeof whole, file);
    int times = atoi(argv[2]), scanned = 0;
    fclose(file);
    srand((unsigned)atoi(argv[3]));
    for (int i = 0; i < times; i++) scanned += try_one(whole, size);
    printf("%d tried, %d scanned\n", times, scanned);
    return 0;
}
