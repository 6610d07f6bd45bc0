"""jinja.jsonl: small templates and what Jinja2 3.1.6 makes of them in the settings of transformers' chat templates.

    pip install jinja2==3.1.6
    python make_jinja_goldens.py jinja_templates.json jinja.jsonl

The first line holds the variables, each other one {"template", "text" or "error"}.
"""

import copy
import datetime
import json
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = lambda form: datetime.datetime(2026, 1, 15, 12, 34, 56).strftime(form)

V = {"s":"Hello, World","e":"","u":"größe ÄÖ ß 数据 🚀","ws":"  \t padded \n ","n":7,"m":-3,"x":2.5,"big":1e22,"t":True,"f":False,"z":None,
   "l":[3,1,2],"ls":["b","A","c"],"ll":[["a",1],["b",2]],"d":{"b":1,"a":[1,2,{"k":None}],"items":"own"},"ld":[{"n":"x","v":2,"o":{"p":1}},{"n":"Y","v":1,"o":{"p":2}},{"n":"x","v":3}],
   "q":"it's \"q\" \\ \n\t","html":"<a href='x'>&</a>","nest":{"a":{"b":[1.0,0.1,1e-7,True,None,"é\u2028"]}}}


def run(template):
    try:
        return {"text": env.from_string(template).render(**copy.deepcopy(V))}
    except Exception as error:
        return {"error": type(error).__name__ + ": " + str(error)}


if __name__ == "__main__":
    with open(sys.argv[2], "w") as out:
        out.write(json.dumps({"variables": V}, ensure_ascii=False) + "\n")
        for template in json.load(open(sys.argv[1])):
            out.write(json.dumps({"template": template, **run(template)}, ensure_ascii=False) + "\n")
