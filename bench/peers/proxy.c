/* Lower bound of a relay: libzmq's zmq_proxy between a ROUTER for clients and a DEALER for workers. */
#include <stdio.h>
#include <zmq.h>

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  void *context = zmq_ctx_new();
  void *front = zmq_socket(context, ZMQ_ROUTER);
  void *back = zmq_socket(context, ZMQ_DEALER);
  int unbounded = 0; /* otherwise a ROUTER drops messages for a client whose pipe is full */
  zmq_setsockopt(front, ZMQ_SNDHWM, &unbounded, sizeof unbounded);
  if (zmq_bind(front, argv[1]) || zmq_bind(back, argv[2])) return 1;
  puts("ready");
  fflush(stdout);
  return zmq_proxy(front, back, NULL);
}
