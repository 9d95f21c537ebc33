/* Model and pack files (docs/spec/model.md) -> Model. Everything is checked here once, so that coding needs no checks. */
#include "kernel_dense.h"
#include <stdarg.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#include <stdio.h>

typedef struct { const uint8_t *data; size_t n; const char *kind; char *error; Model *model; } File;

static int fail(const File *f, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = snprintf(f->error, 128, "%s file: ", f->kind);
    vsnprintf(f->error + n, 128 - (size_t)n, format, args);
    va_end(args);
    return -1;
}

static uint64_t le(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static int file_check(const File *f, const char *magic) {
    if (f->n < FILE_HEADER || memcmp(f->data, magic, 4)) return fail(f, "it does not begin with %s", magic);
    if (f->data[5] > 1) return fail(f, "it needs a reader of version %d", f->data[5]);
    if (le(f->data + 6, 2) > FILE_SECTIONS || FILE_HEADER + le(f->data + 6, 2) * FILE_ENTRY > f->n) return fail(f, "the section table is cut short");
    if (le(f->data + 8, 8) != f->n) return fail(f, "it has %zu bytes, not the %llu that it names", f->n, (unsigned long long)le(f->data + 8, 8));
    return 0;
}

/* The table's entry of a section, or NULL. */
static const uint8_t *section_find(const File *f, const char *name, uint64_t *n) {
    size_t sections = le(f->data + 6, 2);
    for (size_t i = 0; i < sections; i++) {
        const uint8_t *e = f->data + FILE_HEADER + i * FILE_ENTRY;
        if (strncmp((const char *)e, name, 16)) continue;
        if (n) *n = le(e + 24, 8);
        return e;
    }
    return NULL;
}

/* The section's items in host order, aligned; count < 0: any whole number, told in *got. NULL after fail(). */
static const void *section(const File *f, const char *name, size_t size, long count, long *got) {
    uint64_t n;
    const uint8_t *e = section_find(f, name, &n);
    if (!e) { fail(f, "section %s is missing", name); return NULL; }
    const uint64_t at = le(e + 16, 8);
    if (at > f->n || n > f->n - at) { fail(f, "section %s lies outside it", name); return NULL; }
    if (n % size || (count >= 0 && n != (uint64_t)count * size)) { fail(f, "section %s has a wrong size of %llu bytes", name, (unsigned long long)n); return NULL; }
    if (got) *got = (long)(n / size);
    const uint8_t *p = f->data + at;
    if (size == 1 || (LITTLE_ENDIAN_HOST && ((uintptr_t)p & (size - 1)) == 0)) return p;
    uint8_t *copy = malloc((size_t)n + 8);
    if (!copy) { fail(f, "out of memory"); return NULL; }
    f->model->owned[f->model->n_owned++] = copy;
    for (size_t j = 0; j < n; j += size)
        for (size_t b = 0; b < size; b++) copy[j + b] = p[j + (LITTLE_ENDIAN_HOST ? b : size - 1 - b)];
    return copy;
}

/* A dozen random lines a byte miss the TLB a dozen times with 4 KB pages: where the system gives large pages on request, the line
   table is copied into some. NBMF_HUGE_PAGES=0 keeps it in the file's map, which processes share. */
static int huge_pages(const File *f, const uint8_t **lines, size_t n) {
#ifdef __linux__
    const size_t page = (size_t)2 << 20;
    const char *wish = getenv("NBMF_HUGE_PAGES");
    char state[64] = "";
    FILE *file = n < 2 * page || (wish && *wish == '0') ? NULL : fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!file) return 0;
    size_t got = fread(state, 1, sizeof state - 1, file);
    fclose(file);
    if (!got || strstr(state, "[never]")) return 0;
    void *copy = NULL;
    size_t whole = (n + page - 1) & ~(page - 1);
    if (posix_memalign(&copy, page, whole)) return -1;
    f->model->owned[f->model->n_owned++] = copy;
    madvise(copy, whole, MADV_HUGEPAGE);
    memcpy(copy, *lines, n);
    *lines = copy;
#else
    (void)f; (void)lines; (void)n;
#endif
    return 0;
}

static int tables_open(const File *f, Tables *t) {
    long n;
    if (!(t->lines = section(f, "lines", 1, -1, &n))) return -1;      /* as bytes: a line has no byte order and needs no alignment */
    if (n < LINE_BYTES || n % LINE_BYTES || n / LINE_BYTES > 1 << 24) return fail(f, "section lines has a wrong size");
    t->n_lines = (uint32_t)(n / LINE_BYTES);
    if (huge_pages(f, &t->lines, (size_t)n) < 0) return fail(f, "out of memory");
    if (!(t->primer = section(f, "primer", 1, -1, &n))) return -1;
    if (n > 1 << 24) return fail(f, "section primer has a wrong size");
    t->primer_len = (uint32_t)n;
    for (t->primer_bits = 1; t->primer_bits < PRIMER_BITS_MAX && 1u << t->primer_bits < 2 * t->primer_len; t->primer_bits++) {}
    if (!(t->primer_index = calloc((size_t)1 << t->primer_bits, sizeof(uint32_t)))) return fail(f, "out of memory");
    f->model->owned[f->model->n_owned++] = t->primer_index;
    uint64_t hist = 0;
    for (uint32_t i = 0; i < t->primer_len; i++) {
        hist = hist << 8 | t->primer[i];
        if (i + 1 >= PRIMER_MIN) t->primer_index[primer_hash(hist) >> (64 - t->primer_bits)] = i + 1;
    }
    return 0;
}

/* Lays the cells of lists first, first + 1, … out as the coder reads them. */
static void cells_open(int16_t *cells, const int16_t *section, int first, int n) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 8; k++)
            memcpy(cells + k * CELLS_POSITION + (first + i) * CELLS_LIST, section + i * SM_CELLS + k * 256, 256 * sizeof *cells);
}

static void *owned(const File *f, size_t bytes) {
    void *to = NULL;
    if (posix_memalign(&to, 64, bytes)) { fail(f, "out of memory"); return NULL; }
    return f->model->owned[f->model->n_owned++] = to;
}

/* A section of int16 rows [out][in], laid out as [input pair][output][2]. */
static const int16_t *paired(const File *f, const char *name, long n_out, long n_in) {
    const int16_t *rows = section(f, name, 2, n_out * n_in, NULL);
    int16_t *to = rows ? owned(f, (size_t)(n_out * n_in) * sizeof *to) : NULL;
    if (!to) return NULL;
    for (long i = 0; i < n_in; i++)
        for (long o = 0; o < n_out; o++) to[(i / 2 * n_out + o) * 2 + i % 2] = rows[o * n_in + i];
    return to;
}

/* The first layer once more, its masses where the vectors of cells have them; 0 where there is no base list's cell. */
static const int16_t *placed(const File *f, const int16_t *rows) {
    int16_t *to = owned(f, DENSE_PLACES * DENSE_ONES * sizeof *to);
    if (!to) return NULL;
    memset(to, 0, DENSE_PLACES * DENSE_ONES * sizeof *to);
    for (int i = 0; i < DENSE_INPUTS; i++) {
        int at = i;
        if (i >= 32) {
            const int list = (i - 32) % N_BASE_LISTS, cell = CELL[list];
            at = 32 + (i - 32) / N_BASE_LISTS * 24 + (cell < 16 ? cell : cell - 4);
        }
        for (int o = 0; o < DENSE_ONES; o++) to[(at / 2 * DENSE_ONES + o) * 2 + at % 2] = rows[o * DENSE_INPUTS + i];
    }
    return to;
}

static int affine_open(const File *f, Affine *a, const char *name, const char *scale, long n_out, long n_in) {
    const int8_t *rows = section(f, name, 1, n_out * n_in, NULL);
    int8_t *to = rows ? owned(f, (size_t)(n_out * n_in)) : NULL;
    int32_t *less = to ? owned(f, (size_t)n_out * sizeof *less) : NULL;
    if (!less || !(a->scale = section(f, scale, 2, 2 * n_out, NULL))) return -1;
    for (long o = 0; o < n_out; o++) {
        less[o] = 0;
        for (long i = 0; i < n_in; i++) {
            to[((o / 32 * (n_in / 4) + i / 4) * 32 + o % 32) * 4 + i % 4] = rows[o * n_in + i];
            less[o] -= 128 * rows[o * n_in + i];
        }
    }
    *a = (Affine){ to, less, a->scale, a->scale + n_out, (uint32_t)n_in, (uint32_t)n_out };
    return 0;
}

static int in_range(const int16_t *x, long n) {
    for (long i = 0; i < n; i++) if (x[i] < -4095 || x[i] > 4095) return 0;
    return 1;
}

/* The dense profile, where the model has one. What its weights are held to keeps every sum of the bit network within 32 bits. */
static int dense_open(const File *f, Dense *d) {
    long n = 0;
    if (!section_find(f, "dense_rows", NULL)) return 0;
    if (!(d->rows = section(f, "dense_rows", 1, -1, &n))) return -1;
    if (!n || n % (32 * D_ROWS) || n > (long)DENSE_WIDTH_MAX * D_ROWS) return fail(f, "section dense_rows has a wrong size");
    const long width = n / D_ROWS;
    if (!section(f, "dense_middle", 1, -1, &n)) return -1;
    if (!n || n % (32 * width) || n > DENSE_WIDTH_MAX * width) return fail(f, "section dense_middle has a wrong size");
    const long middle = n / width;
    const int16_t *first, *second;
    if (affine_open(f, &d->layer[0], "dense_layer1", "dense_scale1", 2 * width, width) < 0 || affine_open(f, &d->layer[1], "dense_layer2", "dense_scale2", 2 * width, width) < 0 ||
        affine_open(f, &d->middle, "dense_middle", "dense_mid_scale", middle, width) < 0 || affine_open(f, &d->context, "dense_context", "dense_ctx_scale", DENSE_ONES, middle) < 0 ||
        !(d->byte = section(f, "dense_byte", 1, 256 * middle, NULL)) || !(d->byte_scale = section(f, "dense_byte_scal", 2, 256, NULL)) ||
        !(d->node = section(f, "dense_node", 2, 256 * DENSE_ONES, NULL)) || !(first = section(f, "dense_first", 2, DENSE_ONES * DENSE_INPUTS, NULL)) ||
        !(d->first = paired(f, "dense_first", DENSE_ONES, DENSE_INPUTS)) || !(d->placed = placed(f, first)) || !(second = section(f, "dense_second", 2, DENSE_TWOS * DENSE_ONES, NULL)) ||
        !(d->second = paired(f, "dense_second", DENSE_TWOS, DENSE_ONES)) || !(d->second_bias = section(f, "dense_second_b", 2, DENSE_TWOS, NULL)) ||
        !(d->third = section(f, "dense_third", 2, DENSE_TWOS + 1, NULL)) || !(d->skip = section(f, "dense_skip", 2, 256 * 32, NULL)))
        return -1;
    if (!in_range(first, DENSE_ONES * DENSE_INPUTS) || !in_range(second, DENSE_TWOS * DENSE_ONES) || !in_range(d->third, DENSE_TWOS + 1) ||
        !in_range(d->skip, 256 * 32) || !in_range(d->byte_scale, 256))
        return fail(f, "a weight of the dense profile lies outside -4095..4095");
    d->width = (uint32_t)width;
    return huge_pages(f, (const uint8_t **)&d->rows, (size_t)width * D_ROWS) < 0 ? fail(f, "out of memory") : 0;
}

int nbmf_model_open(Model *m, const uint8_t *model, size_t n_model, const uint8_t *pack, size_t n_pack, char *error) {
    memset(m, 0, sizeof *m);
    File f = { model, n_model, "model", error, m }, g = { pack, n_pack, "pack", error, m };
    long n;
    if (file_check(&f, "NBMM") < 0 || tables_open(&f, &m->base) < 0) return -1;
    const int16_t *lists, *local, *pack_lists;
    if (!(lists = section(&f, "lists", 2, N_STATIC * SM_CELLS, NULL)) || !(m->base.primer_sm = section(&f, "primer_match", 2, MATCH_CELLS, NULL)) ||
        !(m->o1 = section(&f, "order1", 2, 65536, NULL)) || !(m->o2_row = section(&f, "order2_row", 2, 65536, NULL)) ||
        !(m->o2 = section(&f, "order2", 1, -1, &n)) || !(m->state_sm = section(&f, "state", 2, 65536, NULL)) ||
        !(local = section(&f, "local", 2, N_LOCAL * SM_CELLS, NULL)) || !(m->match_sm = section(&f, "match", 2, MATCH_CELLS, NULL)) ||
        !(m->squash = section(&f, "squash", 2, 4096, NULL)))
        return -1;
    for (int i = 0; i < 65536; i++)
        if (m->o2_row[i] >= n / 256) return fail(&f, "section order2_row points outside order2");
    for (int i = 0; i < 4096; i++)
        if (!m->squash[i]) return fail(&f, "section squash holds a zero");
    if (!(m->weights = section(&f, pack ? "pack_weights" : "weights", 2, TOTAL_ROWS * LANES, NULL)) ||
        !(m->final_weights = section(&f, pack ? "pack_final" : "final", 2, 256 * 8, NULL)) ||
        !(m->rates = section(&f, pack ? "pack_rates" : "rates", 4, 8, NULL)))
        return -1;
    for (int i = 0; i < 8; i++)
        if (m->rates[i] < 0 || m->rates[i] > 127) return fail(&f, "section rates holds a value outside 0..127");
    int16_t *cells = NULL;
    if (posix_memalign((void **)&cells, 64, 8 * CELLS_POSITION * sizeof *cells)) return fail(&f, "out of memory");
    m->owned[m->n_owned++] = cells;
    memset(cells, 0, 8 * CELLS_POSITION * sizeof *cells);
    cells_open(cells, lists, 0, N_STATIC);
    cells_open(cells, local, LANE_LOCAL, N_LOCAL);
    m->cells = cells;
    if (dense_open(&f, &m->dense) < 0) return -1;
    if (pack) {
        const uint8_t *id;
        if (file_check(&g, "NBMP") < 0 || tables_open(&g, &m->pack) < 0 || !(id = section(&g, "model_id", 1, 32, NULL))) return -1;
        if (memcmp(id, model + 16, 32)) return fail(&g, "it was made for another model");
        if (!(pack_lists = section(&f, "pack_lists", 2, N_PACK * SM_CELLS, NULL)) || !(m->pack.primer_sm = section(&f, "pack_match", 2, MATCH_CELLS, NULL))) return -1;
        cells_open(cells, pack_lists, N_BASE_LISTS, N_PACK);
        m->has_pack = 1;
    }
    return 0;
}

void nbmf_model_close(Model *m) {
    for (int i = 0; i < m->n_owned; i++) free(m->owned[i]);
    m->n_owned = 0;
}
