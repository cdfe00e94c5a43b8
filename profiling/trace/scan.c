/* One pass over the text of events: typed columns out, no memory of its own. scanner.py is the only caller.

   Takes what writers of traces normally write. Anything else (damage, a second key of the same name, a number in
   another notation) makes it return NOT_PLAIN, and the caller reads the piece in another way. Every read is bounded by
   `end`, every write by a capacity. */

#include <stdint.h>
#include <string.h>

enum { DONE = 0, NOT_PLAIN = 1, FULL = 2 };
enum form { WHOLE, REAL, PLAIN_TEXT, ESCAPED_TEXT, LIST, TRUE, FALSE, NOTHING }; /* as in scanner.py */
enum { PID, TID, FIRST_ARGUMENT };                                              /* the first keys of the table */
enum { MAX_DEPTH = 64, KEY_SLOTS = 256 };

typedef struct { /* distinct texts, by where they first stand */
    int32_t *slots;  /* [num_slots], a power of two; 0 for none, else number + 1 */
    int64_t num_slots;
    int64_t *begin;  /* [num_slots / 2] */
    int64_t *end;
    int64_t count;
} Words;

typedef struct {
    const uint8_t *text;
    int64_t length;
    const uint8_t *keys;       /* the keys that are asked for, one behind the other */
    const int64_t *key_ends;   /* [num_keys] */
    int64_t num_keys;          /* at most 64 */
    int64_t num_columns;       /* of these the first have a column, the others only values */
    int64_t max_rows, max_values;
    int64_t *ts, *dur;         /* [max_rows] nanoseconds; dur -1 for none */
    int64_t *columns;          /* [num_columns, max_rows]; -1 for none */
    int32_t *phase;            /* [max_rows] place in PHASES */
    int32_t *category, *name;  /* [max_rows] numbers of words, -1 for none */
    Words categories, names;
    int64_t *value_row, *value_key, *value_form, *value, *value_begin, *value_end; /* [max_values] */
    int64_t num_rows, num_values; /* found */
} Job;

static const char PHASES[] = "XiIMC";

typedef struct {
    Job *job;
    const uint8_t *at, *end;
    uint8_t key_slots[KEY_SLOTS]; /* 0 for none, else key + 1 */
} Reader;

typedef struct {
    enum form form;
    const uint8_t *begin, *end; /* without quotation marks */
    int64_t number;             /* if it is WHOLE */
    int has_object;             /* if it is a LIST */
} Value;

static inline const uint8_t *blank(const uint8_t *at, const uint8_t *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) at++;
    return at;
}

static inline uint64_t has_byte(uint64_t word, uint64_t byte) { /* a high bit at the lowest such byte, some above it */
    uint64_t zero = word ^ (byte * 0x0101010101010101u);
    return (zero - 0x0101010101010101u) & ~zero & 0x8080808080808080u;
}

static inline int first_byte(uint64_t high_bits) { /* in memory; 0 if that is not known, and the search goes on from there */
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_ctzll(high_bits) >> 3;
#else
    return 0;
#endif
}

/* From behind the opening mark to the closing one; NULL if there is none. */
static inline const uint8_t *text_end(const uint8_t *at, const uint8_t *end, int *escaped) {
    *escaped = 0;
    for (;;) {
        while (end - at >= 8) {
            uint64_t word;
            memcpy(&word, at, 8);
            uint64_t found = has_byte(word, '"') | has_byte(word, '\\');
            if (found) {
                at += first_byte(found);
                break;
            }
            at += 8;
        }
        while (at < end && *at != '"' && *at != '\\') {
            at++;
        }
        if (at >= end) return NULL;
        if (*at == '"') return at;
        *escaped = 1;
        if (end - at < 2) return NULL;
        at += 2;
    }
}

static inline uint64_t hash(const uint8_t *at, int64_t length) {
    uint64_t sum = (uint64_t)length * 0x9E3779B97F4A7C15u, word;
    for (; length >= 8; at += 8, length -= 8) {
        memcpy(&word, at, 8);
        sum = (sum ^ word) * 0xD6E8FEB86659FD93u;
        sum ^= sum >> 32;
    }
    word = 0;
    for (int64_t i = 0; i < length; i++) word = word << 8 | at[i];
    sum = (sum ^ word) * 0xD6E8FEB86659FD93u;
    return sum ^ sum >> 32;
}

static int64_t number_of(Words *words, const uint8_t *text, const uint8_t *begin, const uint8_t *end) {
    int64_t length = end - begin, mask = words->num_slots - 1;
    for (int64_t slot = (int64_t)hash(begin, length) & mask;; slot = (slot + 1) & mask) {
        int64_t found = words->slots[slot] - 1;
        if (found < 0) {
            if (words->count >= words->num_slots / 2) return -1;
            words->begin[words->count] = begin - text;
            words->end[words->count] = end - text;
            words->slots[slot] = (int32_t)++words->count;
            return words->count - 1;
        }
        if (words->end[found] - words->begin[found] == length && !memcmp(text + words->begin[found], begin, length))
            return found;
    }
}

static inline int64_t key_hash(const uint8_t *begin, int64_t length) {
    if (!length) return 0;
    return (begin[0] * 7 + begin[length - 1] * 31 + begin[length / 2] * 3 + length * 13) & (KEY_SLOTS - 1);
}

static inline int64_t key_begin(const Job *job, int64_t key) { return key ? job->key_ends[key - 1] : 0; }

static int64_t key_of(const Reader *reader, const uint8_t *begin, const uint8_t *end) {
    const Job *job = reader->job;
    for (int64_t slot = key_hash(begin, end - begin); reader->key_slots[slot]; slot = (slot + 1) & (KEY_SLOTS - 1)) {
        int64_t key = reader->key_slots[slot] - 1, from = key_begin(job, key);
        if (job->key_ends[key] - from == end - begin && !memcmp(job->keys + from, begin, end - begin)) return key;
    }
    return -1;
}

static int is_word(const uint8_t *begin, const uint8_t *end, const char *word) { /* in any case of its letters */
    int64_t length = (int64_t)strlen(word);
    if (end - begin != length) return 0;
    for (int64_t i = 0; i < length; i++)
        if ((begin[i] | 0x20) != (uint8_t)word[i]) return 0;
    return 1;
}

static int is_exactly(const uint8_t *begin, const uint8_t *end, const char *word) {
    return end - begin == (int64_t)strlen(word) && !memcmp(begin, word, end - begin);
}

/* A number, true, false, null; not-a-number and infinities count as null. */
static int scan_bare(Reader *reader, Value *value) {
    const uint8_t *at = reader->at, *end = reader->end;
    value->begin = at;
    int negative = at < end && *at == '-';
    at += negative;
    const uint8_t *digits = at;
    uint64_t sum = 0;
    while (at < end && *at >= '0' && *at <= '9') sum = sum * 10 + (*at++ - '0');
    if (at > digits) {
        if (*digits == '0' && at - digits > 1) return NOT_PLAIN;
        value->form = at - digits <= 18 ? WHOLE : REAL;
        value->number = value->form == REAL ? 0 : negative ? -(int64_t)sum : (int64_t)sum;
        if (at < end && *at == '.') {
            const uint8_t *fraction = ++at;
            while (at < end && *at >= '0' && *at <= '9') at++;
            if (at == fraction) return NOT_PLAIN;
            value->form = REAL;
        }
        if (at < end && (*at | 0x20) == 'e') {
            at++;
            if (at < end && (*at == '+' || *at == '-')) at++;
            const uint8_t *exponent = at;
            while (at < end && *at >= '0' && *at <= '9') at++;
            if (at == exponent) return NOT_PLAIN;
            value->form = REAL;
        }
    } else {
        while (at < end && ((*at | 0x20) >= 'a') && ((*at | 0x20) <= 'z')) at++;
        if (is_exactly(value->begin, at, "true")) value->form = TRUE;
        else if (is_exactly(value->begin, at, "false")) value->form = FALSE;
        else if (is_exactly(value->begin, at, "null") || is_word(digits, at, "nan") || is_word(digits, at, "inf") ||
                 is_word(digits, at, "infinity"))
            value->form = NOTHING;
        else return NOT_PLAIN;
    }
    value->end = reader->at = at;
    return DONE;
}

/* A list or an object, to behind its end. */
static int skip_nested(Reader *reader, int *has_object) {
    const uint8_t *at = reader->at, *end = reader->end;
    uint64_t is_list = 0; /* a bit for each open bracket */
    int depth = 0, escaped;
    *has_object = 0;
    do {
        if (at >= end) return NOT_PLAIN;
        switch (*at) {
        case '"':
            at = text_end(at + 1, end, &escaped);
            if (!at) return NOT_PLAIN;
            break;
        case '{': case '[':
            if (depth == MAX_DEPTH) return NOT_PLAIN;
            if (*at == '{') *has_object = 1;
            is_list = is_list << 1 | (*at == '[');
            depth++;
            break;
        case '}': case ']':
            if ((int)(is_list & 1) != (*at == ']')) return NOT_PLAIN;
            is_list >>= 1;
            depth--;
            break;
        }
        at++;
    } while (depth);
    reader->at = at;
    return DONE;
}

static int scan_value(Reader *reader, Value *value) {
    int escaped;
    if (reader->at >= reader->end) return NOT_PLAIN;
    switch (*reader->at) {
    case '"':
        value->begin = reader->at + 1;
        value->end = text_end(value->begin, reader->end, &escaped);
        if (!value->end) return NOT_PLAIN;
        value->form = escaped ? ESCAPED_TEXT : PLAIN_TEXT;
        reader->at = value->end + 1;
        return DONE;
    case '[':
        value->begin = reader->at;
        value->form = LIST;
        if (skip_nested(reader, &value->has_object)) return NOT_PLAIN;
        value->end = reader->at;
        return DONE;
    case '{':
        value->form = NOTHING;
        return skip_nested(reader, &value->has_object);
    default:
        return scan_bare(reader, value);
    }
}

/* The next key and the colon behind it, or the end of the object. */
static int scan_key(Reader *reader, int is_first, Value *key, int *is_over) {
    reader->at = blank(reader->at, reader->end);
    *is_over = 0;
    if (reader->at < reader->end && *reader->at == '}') {
        reader->at++;
        *is_over = 1;
        return DONE;
    }
    if (!is_first) {
        if (reader->at >= reader->end || *reader->at != ',') return NOT_PLAIN;
        reader->at = blank(reader->at + 1, reader->end);
    }
    if (reader->at >= reader->end || *reader->at != '"' || scan_value(reader, key) || key->form != PLAIN_TEXT)
        return NOT_PLAIN;
    reader->at = blank(reader->at, reader->end);
    if (reader->at >= reader->end || *reader->at != ':') return NOT_PLAIN;
    reader->at = blank(reader->at + 1, reader->end);
    return DONE;
}

/* Microseconds as nanoseconds; digits below one are cut off. */
static int nanoseconds(const Value *value, int64_t *found) {
    const uint8_t *at = value->begin;
    int negative = *at == '-', places = 0;
    uint64_t sum = 0;
    at += negative;
    const uint8_t *digits = at;
    while (at < value->end && *at >= '0' && *at <= '9') sum = sum * 10 + (*at++ - '0');
    if (at - digits > 16 || sum > INT64_MAX / 1000 - 1) return NOT_PLAIN;
    if (at < value->end && *at == '.') {
        at++;
        for (; at < value->end && *at >= '0' && *at <= '9'; at++)
            if (places < 3) {
                sum = sum * 10 + (*at - '0');
                places++;
            }
    }
    if (at != value->end) return NOT_PLAIN;
    for (; places < 3; places++) sum *= 10;
    *found = negative ? -(int64_t)sum : (int64_t)sum;
    return DONE;
}

static int keep(Reader *reader, int64_t key, const Value *value) {
    Job *job = reader->job;
    if (value->form == NOTHING) return DONE;
    if (value->form == LIST && value->has_object) return NOT_PLAIN; /* others write it in their own way */
    if (key < job->num_columns && value->form == WHOLE) {
        job->columns[key * job->max_rows + job->num_rows] = value->number;
        return DONE;
    }
    if (job->num_values >= job->max_values) return FULL;
    int64_t i = job->num_values++;
    job->value_row[i] = job->num_rows;
    job->value_key[i] = key;
    job->value_form[i] = value->form;
    job->value[i] = value->form == WHOLE ? value->number : 0;
    job->value_begin[i] = value->begin - job->text;
    job->value_end[i] = value->end - job->text;
    return DONE;
}

static int scan_arguments(Reader *reader, uint64_t *seen) {
    Value key, value;
    int is_over, status;
    reader->at++;
    for (int is_first = 1;; is_first = 0) {
        if (scan_key(reader, is_first, &key, &is_over)) return NOT_PLAIN;
        if (is_over) return DONE;
        if (scan_value(reader, &value)) return NOT_PLAIN;
        int64_t found = key_of(reader, key.begin, key.end);
        if (found < FIRST_ARGUMENT) continue;
        if (*seen >> found & 1) return NOT_PLAIN;
        *seen |= (uint64_t)1 << found;
        if ((status = keep(reader, found, &value))) return status;
    }
}

typedef struct { /* of the event that is being read */
    uint64_t seen, seen_outside;
    int64_t ts, dur;
    int phase, has_ts, category, name;
} Event;

enum member { PH, CAT, NAME, TS, DUR, ARGS, PID_OF, TID_OF, OTHER };

static inline enum member member_of(const Value *key) {
    const uint8_t *at = key->begin;
    switch (key->end - at) {
    case 2: return !memcmp(at, "ph", 2) ? PH : !memcmp(at, "ts", 2) ? TS : OTHER;
    case 3: return !memcmp(at, "cat", 3) ? CAT : !memcmp(at, "pid", 3) ? PID_OF : !memcmp(at, "tid", 3) ? TID_OF
                 : !memcmp(at, "dur", 3) ? DUR : OTHER;
    case 4: return !memcmp(at, "name", 4) ? NAME : !memcmp(at, "args", 4) ? ARGS : OTHER;
    default: return OTHER;
    }
}

static int take_text(Reader *reader, Words *words, const Value *value, int *number) {
    if (value->form == NOTHING) return DONE;
    if (value->form != PLAIN_TEXT && value->form != ESCAPED_TEXT) return NOT_PLAIN;
    *number = (int)number_of(words, reader->job->text, value->begin, value->end);
    return *number < 0 ? FULL : DONE;
}

static int take(Reader *reader, Event *event, enum member member) {
    Value value;
    if (member == ARGS && reader->at < reader->end && *reader->at == '{') return scan_arguments(reader, &event->seen);
    if (scan_value(reader, &value)) return NOT_PLAIN;
    switch (member) {
    case PH:
        event->phase = -1;
        if (value.form == ESCAPED_TEXT) return NOT_PLAIN;
        if (value.form == PLAIN_TEXT && value.end - value.begin == 1) {
            const char *found = memchr(PHASES, *value.begin, sizeof PHASES - 1);
            if (found) event->phase = (int)(found - PHASES);
        }
        return DONE;
    case CAT: return take_text(reader, &reader->job->categories, &value, &event->category);
    case NAME: return take_text(reader, &reader->job->names, &value, &event->name);
    case TS: case DUR:
        if (value.form == NOTHING) return DONE;
        if (value.form != WHOLE && value.form != REAL) return NOT_PLAIN;
        if (member == TS) event->has_ts = 1;
        return nanoseconds(&value, member == TS ? &event->ts : &event->dur);
    case PID_OF: return keep(reader, PID, &value);
    case TID_OF: return keep(reader, TID, &value);
    default: return DONE;
    }
}

static int scan_event(Reader *reader) {
    Job *job = reader->job;
    Event event = {.dur = -1, .phase = -1, .category = -1, .name = -1};
    int64_t values_before = job->num_values, row = job->num_rows;
    int is_over, status;
    Value key;
    if (row >= job->max_rows) return FULL;
    for (int64_t column = 0; column < job->num_columns; column++) job->columns[column * job->max_rows + row] = -1;
    reader->at++;
    for (int is_first = 1;; is_first = 0) {
        if (scan_key(reader, is_first, &key, &is_over)) return NOT_PLAIN;
        if (is_over) break;
        enum member member = member_of(&key);
        if (member != OTHER) {
            if (event.seen_outside >> member & 1) return NOT_PLAIN;
            event.seen_outside |= (uint64_t)1 << member;
        }
        if ((status = take(reader, &event, member))) return status;
    }
    if (event.phase < 0 || (!event.has_ts && PHASES[event.phase] != 'M')) {
        job->num_values = values_before;
        return DONE;
    }
    job->ts[row] = event.ts;
    job->dur[row] = event.dur;
    job->phase[row] = event.phase;
    job->category[row] = event.category;
    job->name[row] = event.name;
    job->num_rows++;
    return DONE;
}

/* Rows and values of a text `{...}, {...}`. Returns DONE, or why it could not. */
int scan(Job *job) {
    Reader reader = {.job = job, .at = job->text, .end = job->text + job->length};
    int status;
    for (int64_t key = 0; key < job->num_keys; key++) {
        int64_t begin = key_begin(job, key), slot = key_hash(job->keys + begin, job->key_ends[key] - begin);
        while (reader.key_slots[slot]) slot = (slot + 1) & (KEY_SLOTS - 1);
        reader.key_slots[slot] = (uint8_t)(key + 1);
    }
    for (;;) {
        reader.at = blank(reader.at, reader.end);
        if (reader.at >= reader.end || *reader.at != '{') return NOT_PLAIN;
        if ((status = scan_event(&reader))) return status;
        reader.at = blank(reader.at, reader.end);
        if (reader.at >= reader.end) return DONE;
        if (*reader.at++ != ',') return NOT_PLAIN;
    }
}

/* Some parts of a text one behind the other, and where each ends. */
void gather(const uint8_t *text, const int64_t *begin, const int64_t *end, int64_t count, uint8_t *out, int32_t *ends) {
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        memcpy(out + at, text + begin[i], end[i] - begin[i]);
        at += end[i] - begin[i];
        ends[i] = (int32_t)at;
    }
}
