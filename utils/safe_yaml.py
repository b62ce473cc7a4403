"""Reading YAML that somebody else may have written: plain values alone, of a bounded size, each key once."""
import os
import re
import stat

import yaml

from utils.errors import UserError

MAX_BYTES = 2 ** 18     # a recipe has two thousand
MOST_VALUES = 50_000     # with what aliases stand for written out
DEEPEST = 20


class Refused(yaml.MarkedYAMLError):
    """YAML that is well-formed and that no config needs."""


class SafeLoader(yaml.SafeLoader):
    """YAML without code. ``!!python/tuple``, which the released configs.yaml contain, is a tuple."""

    def __init__(self, stream):
        super().__init__(stream)
        self.depth, self.values, self.sizes = 0, 0, {}

    def compose_node(self, parent, index):
        """Count while reading: an alias counts as all that it stands for, so that a few lines cannot become billions of values."""
        mark, before, alias = self.peek_event().start_mark, self.values, self.check_event(yaml.AliasEvent)
        if self.depth == DEEPEST:
            raise Refused(problem=f'nested more than {DEEPEST} deep', problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and node not in self.sizes:
            raise Refused(problem='an alias inside of what it stands for', problem_mark=mark)
        self.values += self.sizes[node] if alias else 1
        self.sizes[node] = self.values - before
        if self.values > MOST_VALUES:
            raise Refused(problem=f'more than {MOST_VALUES} values', problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise Refused(problem=f"'{key.value}' is there twice; keep one of them", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple', lambda loader, node: tuple(loader.construct_sequence(node)))
# YAML 1.1 reads 1e-5 as text; researchers mean a number.
SafeLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'),
                                 list('-+0123456789'))


def read_yaml(path):
    """A YAML file's mapping. Missing, malformed, too large, not a mapping, with Python tags or with a key twice: :class:`UserError`."""
    content = load_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f'{path} must hold options as `name: value` lines')
    return content


def load_yaml(path):
    """A YAML file's content, whatever it is; :class:`UserError` as :func:`read_yaml`."""
    text = read_text(path)
    try:
        return yaml.load(text, Loader=SafeLoader)
    except (yaml.constructor.ConstructorError, Refused) as error:
        plain = '' if isinstance(error, Refused) else '; configs hold plain values only'
        raise UserError(f'{path}, line {error.problem_mark.line + 1}: {error.problem}{plain}') from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def read_text(path):
    """A small regular file's text. A pipe would be waited for, and a device never ends."""
    try:
        about = os.stat(path)
        if stat.S_ISDIR(about.st_mode):
            raise UserError(f"{path} is a folder; name a file in it, such as a run's {os.path.join(path, 'configs.yaml')}")
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f'{path} is not a regular file')
        if about.st_size > MAX_BYTES:
            raise UserError(f'{path} has {about.st_size} bytes, and a config at most {MAX_BYTES}')
        with open(path, encoding='utf-8') as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f'no config file {path}') from None
    except (OSError, ValueError) as error:  # ValueError: no text, or a path that is none
        raise UserError(f'cannot read {path!r}: {getattr(error, "strerror", None) or error}') from None
