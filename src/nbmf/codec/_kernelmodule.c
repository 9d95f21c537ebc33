/* Thin CPython binding (limited API) of the kernel: buffers in, buffers out, the GIL released around the work. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <pthread.h>
#include "kernel_dense.h"
#include "kernel_train.h"
#include "kernel_vector.h"

#define MAX_THREADS 64

typedef struct {
    PyObject_HEAD
    Model model;
    Py_buffer views[2]; int n_views;                /* the model file, the pack file */
    pthread_mutex_t lock;
    Scratch *idle[MAX_THREADS]; int n_idle;
} Coder;

static PyObject *StreamError, *LimitError, *ModelError;   /* nbmf.errors' */

static void coder_free(PyObject *self) {
    Coder *c = (Coder *)self;
    for (int i = 0; i < c->n_views; i++) PyBuffer_Release(&c->views[i]);
    nbmf_model_close(&c->model);
    for (int i = 0; i < c->n_idle; i++) nbmf_scratch_free(c->idle[i]);
    pthread_mutex_destroy(&c->lock);
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *coder_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    PyObject *files[2] = { NULL, Py_None };
    static char *names[] = { "model", "pack", NULL };
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|O", names, &files[0], &files[1])) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Coder *c = (Coder *)alloc(type, 0);
    if (!c) return NULL;
    pthread_mutex_init(&c->lock, NULL);
    for (int i = 0; i < 2 && files[i] != Py_None; i++, c->n_views++)
        if (PyObject_GetBuffer(files[i], &c->views[i], PyBUF_SIMPLE) < 0) { Py_DECREF(c); return NULL; }
    char error[128];
    const Py_buffer *v = c->views;
    if (nbmf_model_open(&c->model, v[0].buf, (size_t)v[0].len, c->n_views > 1 ? v[1].buf : NULL, c->n_views > 1 ? (size_t)v[1].len : 0, error) < 0) {
        PyErr_SetString(ModelError, error);
        Py_DECREF(c);
        return NULL;
    }
    return (PyObject *)c;
}

/* --- scratch pool: one per concurrent call, kept for the next --- */
static Scratch *scratch_take(Coder *c) {
    Scratch *s = NULL;
    pthread_mutex_lock(&c->lock);
    if (c->n_idle) s = c->idle[--c->n_idle];
    pthread_mutex_unlock(&c->lock);
    return s ? s : nbmf_scratch_new();
}
static void scratch_give(Coder *c, Scratch *s) {
    if (!s) return;
    pthread_mutex_lock(&c->lock);
    if (c->n_idle < MAX_THREADS) { c->idle[c->n_idle++] = s; s = NULL; }
    pthread_mutex_unlock(&c->lock);
    if (s) nbmf_scratch_free(s);
}

/* --- one job: a record in, bytes out --- */
typedef struct { const uint8_t *in; size_t n; int type, dense; uint8_t *out; long result; } Job;

static void encode_job(Coder *c, Scratch *s, Job *j) {
    size_t cap = j->n + j->n / 4 + 64;
    for (;;) {
        free(j->out);
        if (!(j->out = malloc(cap))) { j->result = NBMF_SPACE; return; }
        j->result = nbmf_encode(&c->model, s, j->type, j->dense, j->in, j->n, j->out, cap);
        if (j->result != NBMF_SPACE || cap > j->n * 4 + 4096) return;    /* 16 bits a bit is the worst a byte can cost */
        cap = j->n * 20 + 4096;
    }
}

static void decode_job(Coder *c, Scratch *s, Job *j, size_t max_out) {
    size_t cap = MIN(max_out, j->n * 8 + 256);
    for (;;) {
        free(j->out);
        if (!(j->out = malloc(cap + 1))) { j->result = NBMF_SPACE; return; }
        j->result = nbmf_decode(&c->model, s, j->type, j->dense, j->in, j->n, j->out, cap);
        if (j->result != NBMF_LIMIT || cap == max_out) return;
        cap = MIN(max_out, cap * 8);
    }
}

typedef struct { Coder *c; Job *jobs; Py_ssize_t n, share, *next; pthread_mutex_t *lock; int decode; size_t max_out; } Work;

static void *worker(void *arg) {
    Work *w = arg;
    Scratch *s = scratch_take(w->c);
    for (;;) {
        pthread_mutex_lock(w->lock);
        Py_ssize_t from = *w->next, to = MIN(w->n, from + w->share);
        *w->next = to;
        pthread_mutex_unlock(w->lock);
        if (from >= to) break;
        for (Py_ssize_t i = from; i < to; i++) {
            if (!s) w->jobs[i].result = NBMF_SPACE;
            else if (w->decode) decode_job(w->c, s, &w->jobs[i], w->max_out);
            else encode_job(w->c, s, &w->jobs[i]);
        }
    }
    scratch_give(w->c, s);
    return NULL;
}

static void run_jobs(Coder *c, Job *jobs, Py_ssize_t n, int threads, int decode, size_t max_out) {
    pthread_t ids[MAX_THREADS];
    pthread_mutex_t lock;
    Py_ssize_t next = 0;
    pthread_mutex_init(&lock, NULL);
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    /* A few records at a time, but few enough that all threads have work to the end; a value's segments go one by one. */
    Py_ssize_t share = n / (4 * threads);
    Work w = { c, jobs, n, share < 1 ? 1 : share > 8 ? 8 : share, &next, &lock, decode, max_out };
    int started = 0;
    if (threads > n) threads = n < 1 ? 1 : (int)n;
    for (; started < threads - 1; started++)
        if (pthread_create(&ids[started], NULL, worker, &w)) break;
    worker(&w);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    pthread_mutex_destroy(&lock);
}

static PyObject *job_result(Job *j) {
    if (j->result >= 0) return PyBytes_FromStringAndSize((const char *)j->out, (Py_ssize_t)j->result);
    if (j->result == NBMF_SPACE) return PyErr_NoMemory();
    if (j->result == NBMF_LIMIT) PyErr_SetString(LimitError, "decoded size is over the limit");
    else PyErr_SetString(StreamError, "the stream does not decode");
    return NULL;
}

static int check_call(const Coder *c, int type, int profile, Py_ssize_t n) {
    if (type < 0 || type > 3) { PyErr_Format(PyExc_ValueError, "value type %d is not 0..3", type); return -1; }
    if (profile != 0 && (profile != 1 || !c->model.dense.width)) { PyErr_Format(PyExc_ValueError, "profile %d is not in this model", profile); return -1; }
    if (n > (Py_ssize_t)SEGMENT_MAX) { PyErr_Format(PyExc_ValueError, "%zd bytes are over one segment (%u)", n, SEGMENT_MAX); return -1; }
    return 0;
}

static PyObject *code_one(Coder *c, const Py_buffer *v, int type, int profile, int decode, size_t max_out) {
    Job j = { v->buf, (size_t)v->len, type, profile, NULL, 0 };
    Scratch *s;
    Py_BEGIN_ALLOW_THREADS
    s = scratch_take(c);
    if (!s) j.result = NBMF_SPACE;
    else if (decode) decode_job(c, s, &j, max_out);
    else encode_job(c, s, &j);
    scratch_give(c, s);
    Py_END_ALLOW_THREADS
    PyObject *r = job_result(&j);
    free(j.out);
    return r;
}

static PyObject *coder_encode(PyObject *self, PyObject *args) {
    Py_buffer v;
    int type, profile = 0;
    PyObject *r = NULL;
    if (!PyArg_ParseTuple(args, "y*i|i", &v, &type, &profile)) return NULL;
    if (check_call((Coder *)self, type, profile, v.len) == 0) r = code_one((Coder *)self, &v, type, profile, 0, 0);
    PyBuffer_Release(&v);
    return r;
}

static PyObject *coder_decode(PyObject *self, PyObject *args) {
    Py_buffer v;
    int type, profile = 0;
    Py_ssize_t max_out = SEGMENT_MAX;
    PyObject *r = NULL;
    if (!PyArg_ParseTuple(args, "y*i|in", &v, &type, &profile, &max_out)) return NULL;
    if (check_call((Coder *)self, type, profile, 0) == 0) r = code_one((Coder *)self, &v, type, profile, 1, (size_t)MIN(max_out < 0 ? 0 : max_out, (Py_ssize_t)SEGMENT_MAX));
    PyBuffer_Release(&v);
    return r;
}

static PyObject *coder_costs(PyObject *self, PyObject *args) {
    Py_buffer v;
    int type, profile = 0;
    if (!PyArg_ParseTuple(args, "y*i|i", &v, &type, &profile)) return NULL;
    PyObject *r = NULL;
    Coder *c = (Coder *)self;
    uint16_t *cost = NULL;
    if (check_call(c, type, profile, v.len) == 0) {
        cost = malloc(((size_t)v.len + 1) * 2);
        Scratch *s = scratch_take(c);
        if (!cost || !s) PyErr_NoMemory();
        else {
            Py_BEGIN_ALLOW_THREADS
            nbmf_costs(&c->model, s, type, profile, v.buf, (size_t)v.len, cost);
            for (Py_ssize_t i = 0; !LITTLE_ENDIAN_HOST && i <= v.len; i++) cost[i] = (uint16_t)(cost[i] << 8 | cost[i] >> 8);
            Py_END_ALLOW_THREADS
            r = PyBytes_FromStringAndSize((const char *)cost, (v.len + 1) * 2);
        }
        scratch_give(c, s);
        free(cost);
    }
    PyBuffer_Release(&v);
    return r;
}

/* (list of bytes-like, bytes of their types, profile, threads[, max_out]) -> list of bytes */
static PyObject *code_many(PyObject *self, PyObject *args, int decode) {
    PyObject *list, *result = NULL;
    Py_buffer types;
    int profile, threads;
    Py_ssize_t max_out = SEGMENT_MAX;
    if (!PyArg_ParseTuple(args, "O!y*ii|n", &PyList_Type, &list, &types, &profile, &threads, &max_out)) return NULL;
    Py_ssize_t n = PyList_Size(list), views = 0;
    Job *jobs = calloc((size_t)n + 1, sizeof *jobs);
    Py_buffer *view = calloc((size_t)n + 1, sizeof *view);
    if (!jobs || !view) { PyErr_NoMemory(); goto done; }
    if (types.len != n) { PyErr_SetString(PyExc_ValueError, "one type per item is wanted"); goto done; }
    for (; views < n; views++) {
        if (PyObject_GetBuffer(PyList_GetItem(list, views), &view[views], PyBUF_SIMPLE) < 0) goto done;
        int type = ((const uint8_t *)types.buf)[views];
        if (check_call((Coder *)self, type, profile, decode ? 0 : view[views].len) < 0) { views++; goto done; }
        jobs[views] = (Job){ view[views].buf, (size_t)view[views].len, type, profile, NULL, 0 };
    }
    Py_BEGIN_ALLOW_THREADS
    run_jobs((Coder *)self, jobs, n, threads, decode, (size_t)MIN(max_out < 0 ? 0 : max_out, (Py_ssize_t)SEGMENT_MAX));
    Py_END_ALLOW_THREADS
    if (!(result = PyList_New(n))) goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *o = job_result(&jobs[i]);
        if (!o) { Py_CLEAR(result); goto done; }
        PyList_SetItem(result, i, o);
    }
done:
    if (jobs) for (Py_ssize_t i = 0; i < n; i++) free(jobs[i].out);
    for (Py_ssize_t i = 0; view && i < views; i++) PyBuffer_Release(&view[i]);
    free(jobs); free(view);
    PyBuffer_Release(&types);
    return result;
}
static PyObject *coder_encode_many(PyObject *self, PyObject *args) { return code_many(self, args, 0); }
static PyObject *coder_decode_many(PyObject *self, PyObject *args) { return code_many(self, args, 1); }

/* Copies the items of a list end to end into raw (SEGMENT_MAX bytes), and sets lengths; how many bytes in all, or -1 with an exception. */
static Py_ssize_t join(const Coder *c, PyObject *list, const uint8_t *types, int profile, uint8_t *raw, size_t *lengths) {
    Py_ssize_t n = PyList_Size(list), total = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_buffer v;
        if (PyObject_GetBuffer(PyList_GetItem(list, i), &v, PyBUF_SIMPLE) < 0) return -1;
        int bad = check_call(c, types[i], profile, total + v.len) < 0;
        if (!bad) memcpy(raw + total, v.buf, (size_t)v.len);
        lengths[i] = (size_t)v.len;
        total += v.len;
        PyBuffer_Release(&v);
        if (bad) return -1;
    }
    return total;
}

/* (list of bytes-like, bytes of their types, profile[, how many of the first are only learned from]) -> bytes */
static PyObject *coder_encode_sequence(PyObject *self, PyObject *args) {
    PyObject *list, *result = NULL;
    Py_buffer types;
    int profile;
    Py_ssize_t primed = 0;
    if (!PyArg_ParseTuple(args, "O!y*i|n", &PyList_Type, &list, &types, &profile, &primed)) return NULL;
    Py_ssize_t n = PyList_Size(list), total;
    size_t *lengths = calloc((size_t)n + 1, sizeof *lengths);
    uint8_t *raw = malloc(SEGMENT_MAX), *out = NULL;
    if (!lengths || !raw) { PyErr_NoMemory(); goto done; }
    if (types.len != n || primed < 0 || primed >= n) { PyErr_SetString(PyExc_ValueError, "one type per item is wanted, and an item"); goto done; }
    if ((total = join((Coder *)self, list, types.buf, profile, raw, lengths)) < 0) goto done;
    size_t cap = (size_t)total * 20 + (size_t)n * 20 + 64;    /* 16 bits a bit is the worst a byte, or an end, can cost */
    if (!(out = malloc(cap))) { PyErr_NoMemory(); goto done; }
    Coder *c = (Coder *)self;
    const Sequence q = { (size_t)n, (size_t)primed, types.buf, lengths, profile };
    long r = NBMF_SPACE;
    Py_BEGIN_ALLOW_THREADS
    Scratch *s = scratch_take(c);
    if (s) r = nbmf_encode_sequence(&c->model, s, &q, raw, out, cap);
    scratch_give(c, s);
    Py_END_ALLOW_THREADS
    result = r >= 0 ? PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)r) : PyErr_NoMemory();
done:
    free(lengths); free(raw); free(out);
    PyBuffer_Release(&types);
    return result;
}

/* (payload, bytes of all records' types, profile[, max_out of all together[, list of the primed ones]]) -> list of the others */
static PyObject *coder_decode_sequence(PyObject *self, PyObject *args) {
    PyObject *result = NULL, *list = NULL;
    Py_buffer v, types;
    int profile;
    Py_ssize_t max_out = SEGMENT_MAX;
    if (!PyArg_ParseTuple(args, "y*y*i|nO!", &v, &types, &profile, &max_out, &PyList_Type, &list)) return NULL;
    size_t cap = (size_t)(max_out < 0 ? 0 : MIN(max_out, (Py_ssize_t)SEGMENT_MAX));
    Py_ssize_t n = types.len, primed = list ? PyList_Size(list) : 0, known = 0;
    size_t *lengths = calloc((size_t)n + 1, sizeof *lengths);
    uint8_t *out = malloc(SEGMENT_MAX + 1);
    if (!lengths || !out) { PyErr_NoMemory(); goto done; }
    if (primed >= n) { PyErr_SetString(PyExc_ValueError, "one type per item is wanted, and an item"); goto done; }
    for (Py_ssize_t i = 0; i < n; i++) if (check_call((Coder *)self, ((const uint8_t *)types.buf)[i], profile, 0) < 0) goto done;
    if (list && (known = join((Coder *)self, list, types.buf, profile, out, lengths)) < 0) goto done;
    Coder *c = (Coder *)self;
    const Sequence q = { (size_t)n, (size_t)primed, types.buf, lengths, profile };
    Job j = { v.buf, (size_t)v.len, 0, profile, NULL, (size_t)known > cap ? NBMF_LIMIT : NBMF_SPACE };
    Py_BEGIN_ALLOW_THREADS
    Scratch *s = j.result == NBMF_LIMIT ? NULL : scratch_take(c);
    if (s) j.result = nbmf_decode_sequence(&c->model, s, &q, j.in, j.n, out, cap);
    scratch_give(c, s);
    Py_END_ALLOW_THREADS
    if (j.result < 0) { job_result(&j); goto done; }
    if (!(result = PyList_New(n - primed))) goto done;
    const uint8_t *at = out + known;
    for (Py_ssize_t i = primed; i < n; at += lengths[i], i++) {
        PyObject *o = PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)lengths[i]);
        if (!o) { Py_CLEAR(result); goto done; }
        PyList_SetItem(result, i - primed, o);
    }
done:
    free(lengths); free(out);
    PyBuffer_Release(&v); PyBuffer_Release(&types);
    return result;
}

/* --- training passes --- */

/* Opens args as writable or readable views; "records" come first as data, offset, type, first, last. */
typedef struct { Py_buffer v[16]; int n; } Views;
static void *view_open(Views *s, PyObject *o, int writable) {
    if (o == Py_None) return NULL;
    if (PyObject_GetBuffer(o, &s->v[s->n], writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return NULL;
    return s->v[s->n++].buf;
}
static void views_close(Views *s) { for (int i = 0; i < s->n; i++) PyBuffer_Release(&s->v[i]); }
static int records_open(Views *s, Records *r, PyObject *data, PyObject *offset, PyObject *type) {
    if (!nbmf_train_supported()) { PyErr_SetString(PyExc_RuntimeError, "learning needs a processor with AVX2"); return -1; }
    r->data = view_open(s, data, 0); r->offset = view_open(s, offset, 0); r->type = view_open(s, type, 0);
    if (PyErr_Occurred()) return -1;
    int64_t n = (int64_t)s->v[1].len / 8 - 1;
    if (r->first < 0 || r->first > r->last || r->last > n || (int64_t)s->v[2].len < n || r->offset[n] > (int64_t)s->v[0].len) {
        PyErr_SetString(PyExc_ValueError, "record range outside the data");
        return -1;
    }
    return 0;
}

static PyObject *train_keys(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *d, *o, *t, *cost, *key;
    int context;
    long long first, last, n = 0;
    if (!PyArg_ParseTuple(args, "OOOLLiOO", &d, &o, &t, &first, &last, &context, &cost, &key)) return NULL;
    Views s = { .n = 0 };
    Records r = { .first = first, .last = last };
    if (records_open(&s, &r, d, o, t) == 0) {
        const uint16_t *c = view_open(&s, cost, 0);
        uint64_t *k = view_open(&s, key, 1);
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            n = nbmf_train_keys(&r, context, c, k);
            Py_END_ALLOW_THREADS
        }
    }
    views_close(&s);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(n);
}

static PyObject *train_orders(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *d, *o, *t, *o1, *o2;
    long long first, last;
    if (!PyArg_ParseTuple(args, "OOOLLOO", &d, &o, &t, &first, &last, &o1, &o2)) return NULL;
    Views s = { .n = 0 };
    Records r = { .first = first, .last = last };
    if (records_open(&s, &r, d, o, t) == 0) {
        uint32_t *a = view_open(&s, o1, 1), *b = view_open(&s, o2, 1);
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            nbmf_train_orders(&r, a, b);
            Py_END_ALLOW_THREADS
        }
    }
    views_close(&s);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *train_apply(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *d, *o, *t, *h, *st, *sy, *pr, *cost;
    int context, rc = 0;
    float share;
    long long first, last, n;
    if (!PyArg_ParseTuple(args, "OOOLLiLOOOOfO", &d, &o, &t, &first, &last, &context, &n, &h, &st, &sy, &pr, &share, &cost)) return NULL;
    Views s = { .n = 0 };
    Records r = { .first = first, .last = last };
    if (records_open(&s, &r, d, o, t) == 0) {
        const uint64_t *hash = view_open(&s, h, 0);
        const uint32_t *start = view_open(&s, st, 0);
        const uint8_t *sym = view_open(&s, sy, 0);
        const float *prob = view_open(&s, pr, 0);
        uint16_t *c = view_open(&s, cost, 1);
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            rc = nbmf_train_apply(&r, context, n, hash, start, sym, prob, share, c);
            Py_END_ALLOW_THREADS
            if (rc == NBMF_SPACE) PyErr_NoMemory();
        }
    }
    views_close(&s);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* Coder methods: (data, offset, type, first, last, outputs...) */
static PyObject *coder_train(PyObject *self, PyObject *args) {
    const char *what;
    PyObject *d, *o, *t, *a = Py_None, *b = Py_None, *c = Py_None;
    long long first, last;
    float rate = 0, final_rate = 0;
    double bits = 0;
    if (!PyArg_ParseTuple(args, "sOOOLL|OOOff", &what, &d, &o, &t, &first, &last, &a, &b, &c, &rate, &final_rate)) return NULL;
    Views s = { .n = 0 };
    Records r = { .first = first, .last = last };
    const Model *m = &((Coder *)self)->model;
    if (records_open(&s, &r, d, o, t) == 0) {
        void *x = view_open(&s, a, 1), *y = view_open(&s, b, 1), *z = view_open(&s, c, 1);
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            if (!strcmp(what, "cost")) nbmf_train_cost(&r, m, x);
            else if (!strcmp(what, "cells")) nbmf_train_cells(&r, m, x, y, z);
            else if (!strcmp(what, "fit")) bits = nbmf_train_fit(&r, m, x, y, rate, final_rate);
            else if (!strcmp(what, "costs")) nbmf_train_costs(&r, m, 0, x);
            else if (!strcmp(what, "dense_costs") && m->dense.width) nbmf_train_costs(&r, m, 1, x);
            else if (!strcmp(what, "inputs")) nbmf_train_inputs(&r, m, x, y, z);
            else what = NULL;
            Py_END_ALLOW_THREADS
        }
    }
    views_close(&s);
    if (!what) PyErr_SetString(PyExc_ValueError, "no training pass of that name");
    return PyErr_Occurred() ? NULL : PyFloat_FromDouble(bits);
}

static PyMethodDef coder_methods[] = {
    { "encode", coder_encode, METH_VARARGS, "encode(raw, type, profile=0) -> payload" },
    { "decode", coder_decode, METH_VARARGS, "decode(payload, type, profile=0, max_out=SEGMENT_SIZE) -> raw" },
    { "costs", coder_costs, METH_VARARGS, "costs(raw, type, profile=0) -> little-endian uint16 costs in 1/256 bit, one a byte and one for the end" },
    { "encode_many", coder_encode_many, METH_VARARGS, "encode_many(raws, types, profile, threads) -> payloads" },
    { "decode_many", coder_decode_many, METH_VARARGS, "decode_many(payloads, types, profile, threads, max_out) -> raws" },
    { "encode_sequence", coder_encode_sequence, METH_VARARGS, "encode_sequence(raws, types, profile, primed=0) -> one payload" },
    { "decode_sequence", coder_decode_sequence, METH_VARARGS, "decode_sequence(payload, types, profile, max_out, primed=[]) -> raws" },
    { "train", coder_train, METH_VARARGS, "train(pass, data, offset, type, first, last, ...) runs one training pass" },
    { NULL, NULL, 0, NULL },
};
static PyType_Slot coder_slots[] = {
    { Py_tp_new, (void *)coder_new }, { Py_tp_dealloc, (void *)coder_free }, { Py_tp_methods, coder_methods },
    { Py_tp_doc, "Coder(model_sections, pack_sections=None): the loaded integer model" }, { 0, NULL },
};
static PyType_Spec coder_spec = { "nbmf.codec._kernel.Coder", sizeof(Coder), 0, Py_TPFLAGS_DEFAULT, coder_slots };

static PyObject *module_simd(PyObject *self, PyObject *args) {
    (void)self;
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|s", &name)) return NULL;
    if (name && nbmf_set_simd(name) < 0) return PyErr_Format(PyExc_ValueError, "SIMD level %s is not to be had here", name);
    return PyUnicode_FromString(nbmf_simd());
}

/* --- vectors --- */

typedef struct { Py_buffer v[6]; int n; VectorTables tables; VectorTransform transform, *found; const int16_t *sides; } Vectors;

static const void *vectors_view(Vectors *s, PyObject *o) {
    if (o == Py_None) return NULL;
    if (PyObject_GetBuffer(o, &s->v[s->n], PyBUF_SIMPLE) < 0) return NULL;
    return s->v[s->n++].buf;
}
static void vectors_close(Vectors *s) { for (int i = 0; i < s->n; i++) PyBuffer_Release(&s->v[i]); }

/* The tables, and where they are given a transform, its dual and the sides of n rows. */
static int vectors_open(Vectors *s, PyObject *tables, PyObject *transform, PyObject *dual, PyObject *sides, const VectorShape *shape) {
    const void *t = vectors_view(s, tables);
    if (!t || nbmf_vector_tables(&s->tables, t, (size_t)s->v[0].len) < 0) goto wrong;
    if (transform != Py_None) {
        int at = s->n;
        const void *f = vectors_view(s, transform), *d = f ? vectors_view(s, dual) : NULL;
        if (!f || PyErr_Occurred()) goto wrong;
        if (nbmf_vector_transform(&s->transform, f, (size_t)s->v[at].len, d, d ? (size_t)s->v[at + 1].len : 0) < 0) goto wrong;
        if ((size_t)s->transform.dim != shape->d) goto wrong;
        s->found = &s->transform;
    }
    int at = s->n;
    s->sides = vectors_view(s, sides);
    if (s->sides && (!s->found || (size_t)s->v[at].len != shape->n * (size_t)s->transform.sides * 2)) goto wrong;
    if (!s->sides && s->found && s->transform.sides) goto wrong;
    return 0;
wrong:
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "tables, transform or sides of a wrong size");
    return -1;
}

static PyObject *vector_encode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tables, *transform, *dual, *sides, *rows, *made = NULL, *result = NULL;
    VectorShape shape;
    VectorBounds bounds;
    Py_ssize_t n, d;
    Vectors s = { .n = 0 };
    if (!PyArg_ParseTuple(args, "OOOOOipnnddd", &tables, &transform, &dual, &sides, &rows, &shape.mode, &shape.half, &n, &d,
                          &bounds.cosine, &bounds.margin, &bounds.most)) return NULL;
    shape.n = (size_t)n; shape.d = (size_t)d;
    uint8_t *out = NULL;
    size_t as_they_are = 0;
    int unit = 0;
    if (vectors_open(&s, tables, transform, dual, sides, &shape) == 0) {
        int at = s.n;
        const void *from = vectors_view(&s, rows);
        if (from && (size_t)s.v[at].len != shape.n * shape.d * (shape.half ? 2 : 4)) PyErr_SetString(PyExc_ValueError, "rows of a wrong size");
        else if (from && (made = PyBytes_FromStringAndSize(NULL, s.v[at].len))) {
            char *to = PyBytes_AsString(made);
            long r;
            Py_BEGIN_ALLOW_THREADS
            r = nbmf_vector_encode(&s.tables, s.found, &shape, &bounds, from, s.sides, &out, to, &as_they_are, &unit);
            Py_END_ALLOW_THREADS
            result = r < 0 ? PyErr_NoMemory() : Py_BuildValue("y#OnO", out, (Py_ssize_t)r, made, (Py_ssize_t)as_they_are, unit ? Py_True : Py_False);
        }
    }
    free(out);
    Py_XDECREF(made);
    vectors_close(&s);
    return result;
}

static PyObject *vector_decode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tables, *transform, *sides, *stream, *made = NULL;
    VectorShape shape;
    Py_ssize_t n, d;
    Vectors s = { .n = 0 };
    if (!PyArg_ParseTuple(args, "OOOOippnn", &tables, &transform, &sides, &stream, &shape.mode, &shape.half, &shape.unit, &n, &d)) return NULL;
    shape.n = (size_t)n; shape.d = (size_t)d;
    if (vectors_open(&s, tables, transform, Py_None, sides, &shape) == 0) {
        int at = s.n;
        const void *from = vectors_view(&s, stream);
        if (from && (made = PyBytes_FromStringAndSize(NULL, n * d * (shape.half ? 2 : 4)))) {
            char *to = PyBytes_AsString(made);
            Job j = { .result = NBMF_OK };
            Py_BEGIN_ALLOW_THREADS
            j.result = nbmf_vector_decode(&s.tables, s.found, &shape, from, (size_t)s.v[at].len, s.sides, to, NULL);
            Py_END_ALLOW_THREADS
            if (j.result < 0) { Py_CLEAR(made); job_result(&j); }
        }
    }
    vectors_close(&s);
    return made;
}

/* Points as int32 and first bytes, of a stream of mode 1. */
static PyObject *vector_points(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tables, *transform, *sides, *stream, *made = NULL, *first = NULL, *result = NULL;
    VectorShape shape = { .mode = VECTOR_DIRECTION };
    Py_ssize_t n, d;
    Vectors s = { .n = 0 };
    if (!PyArg_ParseTuple(args, "OOOOppnn", &tables, &transform, &sides, &stream, &shape.half, &shape.unit, &n, &d)) return NULL;
    shape.n = (size_t)n; shape.d = (size_t)d;
    if (vectors_open(&s, tables, transform, Py_None, sides, &shape) == 0) {
        int at = s.n;
        const void *from = vectors_view(&s, stream);
        const Py_ssize_t size = n * (s.found ? s.found->m : d) * 4;
        if (from && (made = PyBytes_FromStringAndSize(NULL, size)) && (first = PyBytes_FromStringAndSize(NULL, n))) {
            const VectorPoints points = { memset(PyBytes_AsString(made), 0, (size_t)size), (uint8_t *)PyBytes_AsString(first) };
            Job j = { .result = NBMF_OK };
            Py_BEGIN_ALLOW_THREADS
            j.result = nbmf_vector_decode(&s.tables, s.found, &shape, from, (size_t)s.v[at].len, s.sides, NULL, &points);
            Py_END_ALLOW_THREADS
            if (j.result < 0) job_result(&j);
            else result = Py_BuildValue("OO", made, first);
        }
    }
    Py_XDECREF(made);
    Py_XDECREF(first);
    vectors_close(&s);
    return result;
}

static PyObject *floats_encode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tables, *bits, *result = NULL;
    VectorFloats f;
    Vectors s = { .n = 0 };
    if (!PyArg_ParseTuple(args, "OOpiii", &tables, &bits, &f.half, &f.zeros, &f.family, &f.scale)) return NULL;
    const VectorShape shape = { 0 };
    if (vectors_open(&s, tables, Py_None, Py_None, Py_None, &shape) == 0) {
        const uint32_t *from = vectors_view(&s, bits);
        if (from) {
            uint8_t *out = NULL;
            long r;
            f.n = (size_t)s.v[1].len / 4;
            Py_BEGIN_ALLOW_THREADS
            r = nbmf_floats_encode(&s.tables, &f, from, &out);
            Py_END_ALLOW_THREADS
            result = r < 0 ? PyErr_NoMemory() : PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)r);
            free(out);
        }
    }
    vectors_close(&s);
    return result;
}

static PyObject *floats_decode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *tables, *stream, *made = NULL;
    VectorFloats f;
    Py_ssize_t n;
    Vectors s = { .n = 0 };
    if (!PyArg_ParseTuple(args, "OOnpiii", &tables, &stream, &n, &f.half, &f.zeros, &f.family, &f.scale)) return NULL;
    const VectorShape shape = { 0 };
    if (vectors_open(&s, tables, Py_None, Py_None, Py_None, &shape) == 0) {
        const void *from = vectors_view(&s, stream);
        if (from && (made = PyBytes_FromStringAndSize(NULL, n * 4))) {
            char *to = PyBytes_AsString(made);
            Job j = { .result = NBMF_OK };
            f.n = (size_t)n;
            Py_BEGIN_ALLOW_THREADS
            j.result = nbmf_floats_decode(&s.tables, &f, from, (size_t)s.v[1].len, (uint32_t *)(void *)to);
            Py_END_ALLOW_THREADS
            if (j.result < 0) { Py_CLEAR(made); job_result(&j); }
        }
    }
    vectors_close(&s);
    return made;
}

static PyMethodDef module_methods[] = {
    { "simd", module_simd, METH_VARARGS, "simd([level]) -> level in use: plain, avx2, avx2-vnni or avx512" },
    { "train_keys", train_keys, METH_VARARGS, NULL },
    { "train_orders", train_orders, METH_VARARGS, NULL },
    { "train_apply", train_apply, METH_VARARGS, NULL },
    { "vector_encode", vector_encode, METH_VARARGS, NULL },
    { "vector_decode", vector_decode, METH_VARARGS, NULL },
    { "vector_points", vector_points, METH_VARARGS, NULL },
    { "floats_encode", floats_encode, METH_VARARGS, NULL },
    { "floats_decode", floats_decode, METH_VARARGS, NULL },
    { NULL, NULL, 0, NULL },
};
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_kernel", "The C kernel.", -1, module_methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__kernel(void) {
    PyObject *m = PyModule_Create(&module);
    if (!m) return NULL;
    PyObject *type = PyType_FromSpec(&coder_spec);
    PyObject *errors = PyImport_ImportModule("nbmf.errors");
    if (!type || !errors) return NULL;
    StreamError = PyObject_GetAttrString(errors, "StreamError");
    LimitError = PyObject_GetAttrString(errors, "StreamLimit");
    ModelError = PyObject_GetAttrString(errors, "FormatError");
    Py_DECREF(errors);
    if (!StreamError || !LimitError || !ModelError || PyModule_AddObjectRef(m, "load", type) < 0 || PyModule_AddObject(m, "Coder", type) < 0 ||
        PyModule_AddIntConstant(m, "SEGMENT_SIZE", SEGMENT_MAX) < 0)
        return NULL;
    const char *force = getenv("NBMF_SIMD");
    if (force && *force && nbmf_set_simd(force) < 0) {
        PyErr_Format(PyExc_ImportError, "NBMF_SIMD=%s is not to be had on this machine", force);
        return NULL;
    }
    return m;
}
