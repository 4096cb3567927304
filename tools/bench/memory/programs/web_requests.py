"""Requests parsed, answered from a table and rendered, as a web service does."""

import datetime
import html
import json
import random
import urllib.parse

from repeat import run

r = random.Random(2)


class Request:
    def __init__(self, path, query, headers, body):
        self.path, self.query, self.headers, self.body = path, query, headers, body


TEMPLATE = "<li class='item'><a href='/p/{id}'>{name}</a> <b>{price:.2f}</b></li>"
DB = [{"id": i, "name": "product <%d> & co" % i, "price": i * 1.25, "tags": ["t%d" % (i % 7), "x"]} for i in range(500)]
RAW = [("/search?q=%d&page=%d&sort=price" % (i, i % 5), "Host: a\r\nUser-Agent: test/1.0\r\nAccept: */*\r\nCookie: s=%032x" % i, json.dumps({"cart": [{"id": j, "n": j % 3} for j in range(i % 20)]})) for i in range(50)]


def parse(raw):
    url, heads, body = raw
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(parts.query)
    headers = dict(h.split(": ", 1) for h in heads.split("\r\n"))
    return Request(parts.path, query, headers, json.loads(body))


def handle(request):
    page = int(request.query["page"][0])
    items = [p for p in DB if p["id"] % 5 == page]
    rows = [TEMPLATE.format(id=p["id"], name=html.escape(p["name"]), price=p["price"]) for p in items[:40]]
    total = sum(x["n"] for x in request.body["cart"])
    return {"html": "\n".join(rows), "total": total, "at": str(datetime.datetime(2020, 1, 1))}


def step():
    for raw in RAW:
        request = parse(raw)
        answer = handle(request)
        out = json.dumps(answer).encode()


run(step)
