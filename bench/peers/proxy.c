/* The floor of a relay: libzmq's own zmq_proxy between a ROUTER for clients and a DEALER for workers. */
#include <stdio.h>
#include <zmq.h>

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  void *context = zmq_ctx_new();
  void *front = zmq_socket(context, ZMQ_ROUTER);
  void *back = zmq_socket(context, ZMQ_DEALER);
  int unbounded = 0; /* else a ROUTER drops what a client does not read in time */
  zmq_setsockopt(front, ZMQ_SNDHWM, &unbounded, sizeof unbounded);
  if (zmq_bind(front, argv[1]) || zmq_bind(back, argv[2])) return 1;
  puts("ready");
  fflush(stdout);
  return zmq_proxy(front, back, NULL);
}
