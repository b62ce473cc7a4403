"""Reading of YAML that may come from anybody: only plain values, of a limited size, and each key once."""
import copy
import functools
import os
import re
import stat

import yaml

from utils.errors import UserError

MAX_BYTES = 2 ** 18     # a recipe has two thousand
MAX_VALUES = 50_000     # after aliases are expanded
MAX_DEPTH = 20


class RefusedYamlError(yaml.MarkedYAMLError):
    """YAML that is well-formed, but that no config needs."""


class SafeLoader(yaml.SafeLoader):
    """Loads YAML without code.

    ``!!python/tuple``, which reference implementations write into configs.yaml, becomes a tuple.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.depth, self.values, self.sizes = 0, 0, {}

    def compose_node(self, parent, index):
        """Count the values. An alias counts as its expansion, because a few lines may expand to billions of values."""
        mark, values_before = self.peek_event().start_mark, self.values
        is_alias = self.check_event(yaml.AliasEvent)
        if self.depth == MAX_DEPTH:
            raise RefusedYamlError(problem=f'nested more than {MAX_DEPTH} deep', problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and node not in self.sizes:
            raise RefusedYamlError(problem='an alias inside of its own value', problem_mark=mark)
        self.values += self.sizes[node] if is_alias else 1
        self.sizes[node] = self.values - values_before
        if self.values > MAX_VALUES:
            raise RefusedYamlError(problem=f'more than {MAX_VALUES} values', problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor):
        """Refuse a key that is there twice."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"'{key.value}' is there twice; keep one of them"
                raise RefusedYamlError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple',
                           lambda loader, node: tuple(loader.construct_sequence(node)))
# YAML 1.1 reads 1e-5 as text; researchers mean a number.
SafeLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'),
                                 list('-+0123456789'))


def read_yaml(path):
    """Read the mapping of a YAML file.

    Raises:
        UserError: the file is missing, malformed, too large or no mapping, has Python tags, or has a key twice.
    """
    content = load_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f'{path} must hold options as `name: value` lines')
    return content


def load_yaml(path):
    """Read the content of a YAML file, of any type.

    Raises:
        UserError: see :func:`read_yaml`.
    """
    text = read_text(path)
    try:
        return copy.deepcopy(parse_yaml(text))
    except (yaml.constructor.ConstructorError, RefusedYamlError) as error:
        advice = '' if isinstance(error, RefusedYamlError) else '; configs hold plain values only'
        raise UserError(f'{path}, line {error.problem_mark.line + 1}: {error.problem}{advice}') from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


@functools.lru_cache(maxsize=64)    # a program reads the published recipes for its own notes, a test many times
def parse_yaml(text):
    """Parse YAML. The result is shared: copy it before it is changed."""
    return yaml.load(text, Loader=SafeLoader)


def read_text(path):
    """Read a small regular file. Pipes and devices are refused, because they may never end."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            config = os.path.join(path, 'configs.yaml')
            example = f"a run's {config}" if os.path.exists(config) else 'a recipe, or the configs.yaml of a run'
            raise UserError(f'{path} is a folder; name a file in it, such as {example}')
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f'{path} is not a regular file')
        if status.st_size > MAX_BYTES:
            raise UserError(f'{path} has {status.st_size} bytes, and a config at most {MAX_BYTES}: name a YAML file, '
                            'such as the configs.yaml of a run')
        with open(path, encoding='utf-8') as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f'no config file {path}') from None
    except (OSError, ValueError) as error:  # ValueError: the content is not text, or the path is invalid
        raise UserError(f'cannot read {path!r}: {getattr(error, "strerror", None) or error}') from None
