"""The doors, and nothing else: name one of these where the platform asks for an entry point.

handler.handler     AWS Lambda
handler.http        functions-framework, Google Cloud Run functions
handler.app         any WSGI server: gunicorn, Leapcell, Cloud Run, containers
"""

from llamafn.timeline import COLD_START

with COLD_START.phase("imports"):
    from llamafn.app import App
    from llamafn.platforms.aws import lambda_handler
    from llamafn.platforms.google import http_function
    from llamafn.platforms.wsgi import application
    from llamafn.settings import Settings

_app = App(Settings.from_env())

handler = lambda_handler(_app)
http = http_function(_app)
app = application(_app)
