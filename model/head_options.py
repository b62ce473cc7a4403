"""Options of the heads: they are declared in the heads' files, and read, checked and explained here."""
from model.head_registry import aliases, head_classes, heads_by_backbone
from model.heads.mixins import HasReport
from model.loss_names import active_heads, parse_loss_names, split_loss_names
from utils import options
from utils.help_pages import Topic, first_sentence, own_docstring


def heads_with_report():
    """The Head classes that have a report for test.py."""
    return [head for head in head_classes() if issubclass(head, HasReport)]


def add_report_flags(parser):
    """Add the report flags of all heads, whether a run uses the head or not, and the options of their reports."""
    for head in heads_with_report():
        parser.add_argument(f'--{head.report_flag}', nargs='?', const=True, default=False, metavar='FIGURE',
                            help=f'{head.report_help}; FIGURE is the file of the figure (default: '
                                 f'{head.report_flag}.png next to the checkpoint)')
        head.add_report_options(parser)


def option_group_title(head):
    """The title of a head's options in ``--help all``."""
    names = f"loss {', '.join(head.names)}" if head.names else head.__name__
    return f'{names}: {first_sentence(head)}' if first_sentence(head) else names


def options_read_by(heads, parser):
    """The names of the options that any of the heads adds or shares."""
    added = {name for name, readers in parser.readers.items() if any(head in readers for head in heads)}
    return frozenset(added.union(*(head.shared_options for head in heads)))


class HeadOptions(options.OptionProvider):
    """Options, defaults and checks of the heads."""

    def add_options(self, parser):
        for head in head_classes():
            before = set(parser.actions())
            head.add_options(parser.add_argument_group(option_group_title(head)))
            for name in set(parser.actions()) - before:
                parser.readers[name] = [head]
        for head in head_classes():
            for name in head.shared_options:
                if name in parser.readers:
                    parser.readers[name].append(head)
        by_loss = {}      # {loss: its heads, one per backbone}
        for head in head_classes():
            for name in head.names:
                by_loss.setdefault(name, []).append(head)
        by_alias = {alias: [head for name in losses.split('+') for head in by_loss.get(name, ())]
                    for alias, losses in aliases().items()}
        by_name = {**by_loss, **by_alias}
        parser.catalogs['losses for --loss_names, joined by +'] = {
            name: first_sentence(heads[0]) if name in by_loss else f'short for {aliases()[name]}'
            for name, heads in by_name.items()}
        parser.completions['loss_names'] = list(by_name)
        for name, heads in by_name.items():
            text = '\n\n'.join(map(own_docstring, heads))
            parser.topics[name] = Topic('loss', text, options_read_by(heads, parser))

    def active_readers(self, args):
        return active_heads(args)

    def validate_options(self, args):
        heads = active_heads(args)
        for head in head_classes():
            head.validate_options(args, head in heads)

    def batch_fields(self, args):
        return {field for head in active_heads(args) for field in head.get_fields(args)}

    def method_key(self, args):
        """The losses as a set, without looking them up: a loss whose file is broken is included."""
        names = split_loss_names(args.loss_names)
        return {loss for name in names for loss in aliases().get(name, name).split('+')}

    def loss_names(self):
        """All names that ``--loss_names`` accepts, for any backbone."""
        return {*aliases(), *(name for by_name in heads_by_backbone().values() for name in by_name)}

    def log_notes(self, args):
        named = parse_loss_names(args.loss_names, args.backbone, args.tuning)
        return [f"the head '{head.names[0]}' is part of the model because its options are given, although --loss_names "
                'does not name it' for head in active_heads(args) if head.names and head not in named]


options.register_options(__name__, HeadOptions())
