"""A Google Cloud Storage service on this machine: an emulator, and four things that it lacks.

It does not list from one name to another, does not read the last bytes of a file, does not say
which generation of a file it sends, and writes where a condition forbids it. tensorstore needs all.
"""

import contextlib
from functools import partial
from http.server import HTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

OBJECTS = "/storage/v1/b/bucket/o"


class Handler(RequestHandler):
    def do_GET(self):
        # "folder/" to "folder0" is all that begins with "folder/".
        if self.path.startswith(f"{OBJECTS}?startOffset="):
            self.path = self.path.replace("startOffset=", "prefix=", 1)
        last = self.headers.get("Range", "").removeprefix("bytes=-")
        if last.isdigit():
            end = int(self.stored(self.object_name())["size"])
            self.headers.replace_header("Range", f"bytes={max(end - int(last), 0)}-{end - 1}")
        super().do_GET()

    def do_POST(self):
        query = parse_qs(urlsplit(self.path).query)
        wanted = query.get("ifGenerationMatch")
        if wanted and wanted[0] != self.generation(query["name"][0]):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(412)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_POST()

    def end_headers(self):
        if self.command == "GET" and "alt=media" in self.path:
            self.send_header("x-goog-generation", self.generation(self.object_name()))
        super().end_headers()

    def object_name(self):
        return unquote(urlsplit(self.path).path.removeprefix(f"{OBJECTS}/"))

    def generation(self, name):
        """Of a file; 0 if there is none, as the service counts."""
        return self.stored(name).get("generation", "0")

    def stored(self, name):
        """What is known of a file; empty if there is none."""
        try:
            return self.storage.get_file_obj("bucket", name)
        except NotFound:
            return {}


@contextlib.contextmanager
def serve():
    """The address of a service with one bucket."""
    storage = Storage(use_memory_fs=True)
    create_bucket("bucket", storage)
    server = HTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
