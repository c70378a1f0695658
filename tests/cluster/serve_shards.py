"""Serve a folder over HTTP with byte ranges: python serve_shards.py FOLDER ADDRESS PORT."""

import sys

from aiohttp import web

folder, address, port = sys.argv[1:]
application = web.Application()
application.router.add_static("/", folder)
web.run_app(application, host=address, port=int(port), print=None)
