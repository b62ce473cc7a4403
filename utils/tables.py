"""One table as text, Markdown and LaTeX: a heading, a header and lines of texts."""
from prettytable import PrettyTable

METRICS = ('R1', 'R5', 'R10', 'mAP', 'mINP')


def as_text(heading, header, lines):
    shown = PrettyTable(header, align='l')
    shown.add_rows(lines)
    return f'{heading}\n{shown.get_string()}'


def as_markdown(heading, header, lines):
    lines = [header, ['---'] * len(header)] + [[cell.replace('|', r'\|') for cell in line] for line in lines]
    return f'**{heading}**\n\n' + '\n'.join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(heading, header, lines):
    lines = [' & '.join(map(escaped, cells)) + r' \\' for cells in [header, *lines]]
    lines[0] += r' \hline'
    columns = ''.join('r' if name in ('n', *METRICS) else 'l' for name in header)
    body = '\n'.join([f'\\begin{{tabular}}{{{columns}}}', *lines, r'\end{tabular}'])
    return f'% {heading}\n{body}'


def escaped(text):
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$'}
    return ''.join(special.get(letter, f'\\{letter}' if letter in '&%$#_{}' else letter) for letter in text)


FORMATS = {'text': as_text, 'markdown': as_markdown, 'latex': as_latex}
