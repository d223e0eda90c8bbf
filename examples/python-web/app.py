"""A web app of the standard library alone: answers every path with who and where it is."""

import html
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = os.environ.get("SHORE_APP", "python-web")
INDEX = os.environ.get("SHORE_INSTANCE_INDEX", "")
PAGE = f"<!doctype html><title>{html.escape(NAME)}</title><h1>{html.escape(NAME)}</h1>"
PAGE += f"<p>python-web, instance {html.escape(INDEX or 'local')}</p>\n"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    timeout = 75

    def do_GET(self):
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def handle_one_request(self):
        super().handle_one_request()
        if self.server.stopping:
            self.close_connection = True

    def log_request(self, code="-", size="-"):
        pass


class Server(ThreadingHTTPServer):
    """Knows its connections, so that a stop can let requests finish and close idle ones."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address):
        super().__init__(address, Handler)
        self.stopping = False
        self.nobody_waits = False
        self.lock = threading.Lock()
        self.connections = set()

    def process_request(self, request, client_address):
        with self.lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                self.connections.discard(request)

    def handle_timeout(self):
        self.nobody_waits = True

    def drain(self, seconds):
        """Takes who waits already, then ends idle connections and waits for answers under way."""
        self.timeout = 0
        for _ in range(self.request_queue_size):
            if not self.nobody_waits:
                self.handle_request()
        self.socket.close()
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            with self.lock:
                if not self.connections:
                    return
                # A request may still be on its way to a new connection.
                idle = self.connections if time.monotonic() > begin + 0.1 else ()
                for connection in idle:
                    try:
                        connection.shutdown(socket.SHUT_RD)
                    except OSError:
                        pass
            time.sleep(0.01)


def main():
    port = int(os.environ.get("PORT", "8080"))
    server = Server((os.environ.get("HOST", "127.0.0.1"), port))

    def stop(_signal, _frame):
        server.stopping = True
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on {port}")
    server.serve_forever(poll_interval=0.05)
    server.drain(5)


if __name__ == "__main__":
    main()
