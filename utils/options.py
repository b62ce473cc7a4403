"""The options of train.py and test.py: what programs, heads, backbones and scripts of IRRA's users import.

Flags override a recipe (``--config_file``), which overrides the defaults. The defaults are IRRA's. An unknown name is
an error everywhere, because a typo would train another model.

- :mod:`utils.option_declarations`: every option with type, bounds, default, help and effect
- :mod:`utils.option_providers`: the options that heads, backbones and datasets add
- :mod:`utils.training_options`, :mod:`utils.evaluation_options`: read a command line and its recipe or run
- :mod:`utils.run_config`: complete options, and the values that follow from them
- :mod:`utils.option_notes`: notes on the options, for the log
- :mod:`utils.option_types`, :mod:`utils.parser`, :mod:`utils.recipes`: types, the parser, YAML files
"""
from utils.evaluation_options import parse_test_options, run_options
from utils.option_declarations import (REPORT_OPTIONS, RERANK_OPTIONS, SPLIT_OPTIONS, add_breakdown_options,
                                       build_core_parser, build_parser, build_test_parser)
from utils.option_providers import OptionProvider, register_options
from utils.option_types import Effect, split_dataset_path
from utils.parser import Parser
from utils.recipes import to_plain_value
from utils.run_config import Options, RunConfig, as_dict, complete, replace_options, with_notes
from utils.safe_yaml import read_yaml
from utils.training_options import get_args

__all__ = ['REPORT_OPTIONS', 'RERANK_OPTIONS', 'SPLIT_OPTIONS', 'Effect', 'OptionProvider', 'Options', 'Parser',
           'RunConfig', 'add_breakdown_options', 'as_dict', 'build_core_parser', 'build_parser', 'build_test_parser',
           'complete', 'get_args', 'parse_test_options', 'read_yaml', 'register_options', 'replace_options',
           'run_options', 'split_dataset_path', 'to_plain_value', 'with_notes']
