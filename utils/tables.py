"""Tables as text, Markdown and LaTeX, each from a heading, a header and rows of texts."""
from prettytable import PrettyTable

METRICS = ('R1', 'R5', 'R10', 'mAP', 'mINP')                          # of retrieval
ATTRIBUTE_METRICS = ('mA', 'accuracy', 'precision', 'recall', 'F1')   # of attribute recognition


def format_text(heading, header, rows):
    table = PrettyTable(header, align='l')
    table.add_rows(rows)
    return f'{heading}\n{table.get_string()}'


def format_markdown(heading, header, rows):
    rows = [header, ['---'] * len(header)] + [[cell.replace('|', r'\|') for cell in row] for row in rows]
    return f'**{heading}**\n\n' + '\n'.join(f"| {' | '.join(row)} |" for row in rows)


def format_latex(heading, header, rows):
    lines = [' & '.join(map(escape_latex, cells)) + r' \\' for cells in [header, *rows]]
    lines[0] += r' \hline'
    columns = ''.join('r' if name in ('n', *METRICS, *ATTRIBUTE_METRICS) else 'l' for name in header)
    body = '\n'.join([f'\\begin{{tabular}}{{{columns}}}', *lines, r'\end{tabular}'])
    return f'% {heading}\n{body}'


def escape_latex(text):
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$'}
    return ''.join(special.get(letter, f'\\{letter}' if letter in '&%$#_{}' else letter) for letter in text)


FORMATS = {'text': format_text, 'markdown': format_markdown, 'latex': format_latex}
