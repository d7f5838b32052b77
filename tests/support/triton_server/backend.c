/* A backend of Triton that passes the requests of a batch on to a process of its own (worker.py), which runs the graph.
 *
 * The server binary that can be had from a package registry brings no backend that runs ONNX graphs. This one takes the
 * place of `onnxruntime` in tests: the server itself reads the configurations, keeps the sequences and their implicit
 * states, forms the batches and talks gRPC; only the graph runs elsewhere. The functions are those of Triton's C API.
 */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void Error, Model, Instance, Request, Input, Response, Output, State;

extern char **environ;
extern Error *TRITONSERVER_ErrorNew(int code, const char *text);
extern void TRITONSERVER_ErrorDelete(Error *error);
extern Error *TRITONBACKEND_ModelRepository(Model *model, int *kind, const char **place);
extern Error *TRITONBACKEND_ModelVersion(Model *model, uint64_t *version);
extern Error *TRITONBACKEND_ModelInstanceModel(Instance *instance, Model **model);
extern Error *TRITONBACKEND_ModelInstanceSetState(Instance *instance, void *state);
extern Error *TRITONBACKEND_ModelInstanceState(Instance *instance, void **state);
extern Error *TRITONBACKEND_RequestInputCount(Request *request, uint32_t *count);
extern Error *TRITONBACKEND_RequestInputByIndex(Request *request, uint32_t index, Input **input);
extern Error *TRITONBACKEND_RequestOutputCount(Request *request, uint32_t *count);
extern Error *TRITONBACKEND_RequestOutputName(Request *request, uint32_t index, const char **name);
extern Error *TRITONBACKEND_RequestRelease(Request *request, uint32_t flags);
extern Error *TRITONBACKEND_InputProperties(Input *input, const char **name, int *type, const int64_t **shape,
                                            uint32_t *dims, uint64_t *bytes, uint32_t *buffers);
extern Error *TRITONBACKEND_InputBuffer(Input *input, uint32_t index, const void **buffer, uint64_t *bytes, int *memory,
                                        int64_t *device);
extern Error *TRITONBACKEND_ResponseNew(Response **response, Request *request);
extern Error *TRITONBACKEND_ResponseOutput(Response *response, Output **output, const char *name, int type,
                                           const int64_t *shape, uint32_t dims);
extern Error *TRITONBACKEND_ResponseSend(Response *response, uint32_t flags, Error *error);
extern Error *TRITONBACKEND_OutputBuffer(Output *output, void **buffer, uint64_t bytes, int *memory, int64_t *device);
extern Error *TRITONBACKEND_StateNew(State **state, Request *request, const char *name, int type, const int64_t *shape,
                                     uint32_t dims);
extern Error *TRITONBACKEND_StateBuffer(State *state, void **buffer, uint64_t bytes, int *memory, int64_t *device);
extern Error *TRITONBACKEND_StateUpdate(State *state);

enum { INTERNAL = 1, FINAL = 1, RELEASE_ALL = 1, MAX_DIMS = 8, MAX_NAME = 256 };

typedef struct {
  int socket;
  pid_t worker;
} Worker;

#define TRY(call)                  \
  do {                             \
    Error *try_error = (call);      \
    if (try_error != NULL) return try_error; \
  } while (0)

static Error *sent(int to, const void *bytes, size_t count) {
  const char *left = bytes;
  while (count > 0) {
    ssize_t done = send(to, left, count, MSG_NOSIGNAL);
    if (done <= 0) return TRITONSERVER_ErrorNew(INTERNAL, "the worker is gone");
    left += done;
    count -= (size_t)done;
  }
  return NULL;
}

static Error *got(int from, void *bytes, size_t count) {
  char *left = bytes;
  while (count > 0) {
    ssize_t done = recv(from, left, count, 0);
    if (done <= 0) return TRITONSERVER_ErrorNew(INTERNAL, "the worker is gone");
    left += done;
    count -= (size_t)done;
  }
  return NULL;
}

static Error *sent_number(int to, uint32_t number) { return sent(to, &number, sizeof number); }

static Error *sent_text(int to, const char *text) {
  TRY(sent_number(to, (uint32_t)strlen(text)));
  return sent(to, text, strlen(text));
}

/* A text of at most MAX_NAME - 1 characters. */
static Error *got_text(int from, char *text) {
  uint32_t length;
  TRY(got(from, &length, sizeof length));
  if (length >= MAX_NAME) return TRITONSERVER_ErrorNew(INTERNAL, "the worker sends a name that is too long");
  text[length] = 0;
  return got(from, text, length);
}

static Error *sent_input(int to, Input *input) {
  const char *name;
  const int64_t *shape;
  int type, memory;
  int64_t device;
  uint32_t dims, buffers;
  uint64_t bytes;
  TRY(TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &bytes, &buffers));
  TRY(sent_text(to, name));
  TRY(sent_number(to, (uint32_t)type));
  TRY(sent_number(to, dims));
  TRY(sent(to, shape, dims * sizeof *shape));
  TRY(sent(to, &bytes, sizeof bytes));
  for (uint32_t index = 0; index < buffers; index++) {
    const void *buffer;
    uint64_t part;
    TRY(TRITONBACKEND_InputBuffer(input, index, &buffer, &part, &memory, &device));
    TRY(sent(to, buffer, part));
  }
  return NULL;
}

static Error *sent_request(int to, Request *request) {
  uint32_t count;
  TRY(TRITONBACKEND_RequestInputCount(request, &count));
  TRY(sent_number(to, count));
  for (uint32_t index = 0; index < count; index++) {
    Input *input;
    TRY(TRITONBACKEND_RequestInputByIndex(request, index, &input));
    TRY(sent_input(to, input));
  }
  TRY(TRITONBACKEND_RequestOutputCount(request, &count));
  TRY(sent_number(to, count));
  for (uint32_t index = 0; index < count; index++) {
    const char *name;
    TRY(TRITONBACKEND_RequestOutputName(request, index, &name));
    TRY(sent_text(to, name));
  }
  return NULL;
}

/* Read and forget what the server has no place for; return why it has none. */
static Error *skipped(int from, uint64_t bytes, Error *refused) {
  char *unused = malloc(bytes + 1);
  Error *lost = got(from, unused, bytes);
  free(unused);
  if (lost != NULL) TRITONSERVER_ErrorDelete(lost);
  return refused;
}

/* Take one tensor from the worker: the next state of a request's sequence, or an output of its response. */
static Error *got_tensor(int from, Request *request, Response *response) {
  char name[MAX_NAME];
  int64_t shape[MAX_DIMS], device = 0;
  uint32_t is_state, type, dims;
  uint64_t bytes;
  int memory = 0;
  void *buffer;
  Output *output;
  State *state;
  Error *refused;
  TRY(got(from, &is_state, sizeof is_state));
  TRY(got_text(from, name));
  TRY(got(from, &type, sizeof type));
  TRY(got(from, &dims, sizeof dims));
  if (dims > MAX_DIMS) return TRITONSERVER_ErrorNew(INTERNAL, "the worker sends too many dimensions");
  TRY(got(from, shape, dims * sizeof *shape));
  TRY(got(from, &bytes, sizeof bytes));
  if (is_state) {
    refused = TRITONBACKEND_StateNew(&state, request, name, (int)type, shape, dims);
    if (refused == NULL) refused = TRITONBACKEND_StateBuffer(state, &buffer, bytes, &memory, &device);
  } else {
    refused = TRITONBACKEND_ResponseOutput(response, &output, name, (int)type, shape, dims);
    if (refused == NULL) refused = TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &device);
  }
  if (refused != NULL) return skipped(from, bytes, refused);
  TRY(got(from, buffer, bytes));
  return is_state ? TRITONBACKEND_StateUpdate(state) : NULL;
}

static Error *got_response(int from, Request *request, Response *response) {
  uint32_t count;
  Error *first = NULL;
  TRY(got(from, &count, sizeof count));
  for (uint32_t index = 0; index < count; index++) {
    Error *failed = got_tensor(from, request, response);
    if (first == NULL) first = failed;
    else if (failed != NULL) TRITONSERVER_ErrorDelete(failed);
  }
  return first;
}

/* Run a batch in the worker. An error of the worker is in `text`. */
static Error *ran(int worker, Request **requests, uint32_t count) {
  char text[MAX_NAME];
  uint32_t failed = 0;
  TRY(sent_number(worker, count));
  for (uint32_t index = 0; index < count; index++) TRY(sent_request(worker, requests[index]));
  TRY(got(worker, &failed, sizeof failed));
  if (!failed) return NULL;
  TRY(got_text(worker, text));
  return TRITONSERVER_ErrorNew(INTERNAL, text);
}

Error *TRITONBACKEND_ModelInstanceInitialize(Instance *instance) {
  Model *model;
  const char *place, *python = getenv("TRITON_TEST_PYTHON"), *script = getenv("TRITON_TEST_WORKER");
  char version[32];
  uint64_t number;
  int kind, pair[2];
  TRY(TRITONBACKEND_ModelInstanceModel(instance, &model));
  TRY(TRITONBACKEND_ModelRepository(model, &kind, &place));
  TRY(TRITONBACKEND_ModelVersion(model, &number));
  if (python == NULL || script == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return TRITONSERVER_ErrorNew(INTERNAL, "TRITON_TEST_PYTHON or TRITON_TEST_WORKER is not set, or no sockets");
  snprintf(version, sizeof version, "%llu", (unsigned long long)number);
  char *words[] = {(char *)python, (char *)script, (char *)place, version, NULL};
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, pair[1], 0);
  Worker *worker = malloc(sizeof *worker);
  int failed = posix_spawn(&worker->worker, python, &files, NULL, words, environ);
  posix_spawn_file_actions_destroy(&files);
  close(pair[1]);
  worker->socket = pair[0];
  if (failed) return TRITONSERVER_ErrorNew(INTERNAL, "the worker cannot be started");
  return TRITONBACKEND_ModelInstanceSetState(instance, worker);
}

Error *TRITONBACKEND_ModelInstanceFinalize(Instance *instance) {
  void *state;
  TRY(TRITONBACKEND_ModelInstanceState(instance, &state));
  Worker *worker = state;
  if (worker != NULL) {
    close(worker->socket); /* it ends */
    waitpid(worker->worker, NULL, 0);
    free(worker);
  }
  return NULL;
}

Error *TRITONBACKEND_ModelInstanceExecute(Instance *instance, Request **requests, const uint32_t count) {
  void *state;
  TRY(TRITONBACKEND_ModelInstanceState(instance, &state));
  Worker *worker = state;
  TRY(ran(worker->socket, requests, count));
  for (uint32_t index = 0; index < count; index++) {
    Response *response;
    TRY(TRITONBACKEND_ResponseNew(&response, requests[index]));
    Error *failed = got_response(worker->socket, requests[index], response);
    TRY(TRITONBACKEND_ResponseSend(response, FINAL, failed));
    if (failed != NULL) TRITONSERVER_ErrorDelete(failed);
    TRY(TRITONBACKEND_RequestRelease(requests[index], RELEASE_ALL));
  }
  return NULL;
}
