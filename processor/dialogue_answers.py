"""The answers of a multimodal language model in a dialogue (:mod:`processor.dialogue`): stored in a file, or asked for.

The file has one JSON mapping per line, about a caption and an image of the split::

    {"caption": "a man in a red coat", "image": "test/0001.jpg", "matches": "Yes."}
    {"caption": "a man in a red coat", "image": "test/0001.jpg", "rewritten": "a tall man in a long red coat"}

Paths are relative to the folder of the images, as in the annotation. ``matches`` is the answer whether the caption
describes the image. ``description`` are the answers to :data:`QUESTIONS`, and ``rewritten`` is the caption with the
description merged into it. Several lines about a pair complete each other.
"""
import json
import logging
import os

from tqdm import tqdm

from datasets.captions import caption_problem
from utils.errors import UserError
from utils.iotools import check_regular_file, parse_json

logger = logging.getLogger('Pedestal.test')

FIELDS = 'matches', 'description', 'rewritten'
QUESTIONS = (
    'Is the person a man or a woman?', 'How old does the person seem?', 'What is the hair like?',
    'What does the person wear on the upper body, and in which color?',
    'Is there a print, a pattern or a text on the upper clothes?', 'How long are the sleeves?',
    'What does the person wear on the lower body, and in which color?', 'How long are the trousers or the skirt?',
    'Which shoes does the person wear, and in which color?', 'Does the person wear a hat or a cap?',
    'Does the person wear glasses?', 'Does the person carry a bag, and of which kind and color?',
    'Does the person hold something?', 'What does the person do?', 'From which side is the person seen?')
CONFIRM = 'Does this sentence describe the person in the image? Answer with yes or no.\n\n{caption}'
DESCRIBE = ('Answer each question about the person in the image with one sentence, in a numbered list. Begin the '
            'answers to the questions that allow it with "Yes, " or "No, ".\n\n{questions}')
REWRITE = ('The sentences below describe the same person. Merge them into one description of at most 60 words, and '
           'write nothing else. If they contradict each other, the later sentence is right.\n\n{caption}\n{answers}')


def clean_answers(text):
    """Extract the sentences of the answers to :data:`QUESTIONS`, as ICL does.

    A line with a colon is dropped. The sentence is the part of a line after the first ``. ``, up to a second one.
    ``Yes, `` and ``No, `` are removed. The sentence then gets a capital letter at its start and a full stop at its end.
    A line without ``. `` becomes an empty text.

    >>> clean_answers('The answers:\\n1. Male.\\n2. Yes, the coat is red')
    ['Male.', 'The coat is red.']
    """
    sentences = []
    for line in text.split('\n'):
        if ':' in line:
            continue
        parts = line.split('. ')
        if len(parts) < 2:
            sentences.append('')
            continue
        sentence = parts[1].replace('Yes, ', '').replace('No, ', '')
        sentence = sentence[:1].upper() + sentence[1:]
        sentences.append(sentence if sentence.endswith('.') else f'{sentence}.')
    return sentences


class Answers:
    """Answers about pairs of a caption and an image.

    Args:
        path: the file of the answers. Without ``generate`` it must exist. New answers are appended.
        folder: the folder that the images' paths in the file are relative to.
        generate: a function that answers what the file lacks. It takes a list of prompts and a list of as many image
            paths, None for a prompt without an image, and returns a list of as many texts. None: a missing answer is an
            error.
        chunk_size: the number of prompts that ``generate`` gets at once. An interruption loses at most these answers.

    Raises:
        UserError: the file is missing or invalid.
    """

    def __init__(self, path, folder, generate=None, chunk_size=64):
        self.path, self.folder, self.generate, self.chunk_size = path, folder, generate, chunk_size
        self.answers = read_answers(path, is_optional=generate is not None)
        if generate is not None and not os.path.exists(path):
            append_lines(path, [])     # now, rather than after the first answers, if it cannot be written

    def confirm(self, captions, images):
        """Whether each of N captions describes its image, a list of booleans: whether the answer contains "yes".

        Args:
            captions: texts.
            images: the paths of N images.
        """
        prompts = [(CONFIRM.format(caption=caption), image) for caption, image in zip(captions, images)]
        return ['yes' in text.lower() for text in self.get('matches', captions, images, prompts)]

    def rewrite(self, captions, images):
        """Rewrite N captions with what the model sees in their images: N texts."""
        pairs = list(zip(captions, images))
        missing = [pair for pair in pairs if self.find(*pair, 'rewritten') is None]
        describe = DESCRIBE.format(questions='\n'.join(f'{n}. {text}' for n, text in enumerate(QUESTIONS, start=1)))
        if missing and self.generate is None and not all(self.find(*pair, 'description') for pair in missing):
            raise self.missing_error('rewritten', missing)
        descriptions = dict(zip(missing, self.get('description', *unzip(missing),
                                                  [(describe, image) for _, image in missing])))
        prompts = []
        for caption, image in pairs:
            answers = ' '.join(filter(None, clean_answers(descriptions.get((caption, image), ''))))
            prompts.append((REWRITE.format(caption=caption, answers=answers), None))
        texts = self.get('rewritten', captions, images, prompts)
        return [keep_usable(text, caption) for text, caption in zip(texts, captions)]

    def find(self, caption, image, field):
        """Return the stored answer about a pair, or None."""
        return self.answers.get(self.key(caption, image), {}).get(field)

    def key(self, caption, image):
        """Return the names of a pair in the file: the caption, and the path of the image in the annotation."""
        return caption, os.path.relpath(image, self.folder).replace(os.sep, '/')

    def get(self, field, captions, images, prompts):
        """Return one field of the answers about pairs, and generate those that the file lacks."""
        pairs = list(zip(captions, images))
        missing = {pair: prompt for pair, prompt in zip(pairs, prompts) if self.find(*pair, field) is None}
        if missing and self.generate is None:
            raise self.missing_error(field, list(missing))
        open_pairs = list(missing)
        for start in tqdm(range(0, len(open_pairs), self.chunk_size), desc=field, leave=False, disable=None):
            chunk = open_pairs[start:start + self.chunk_size]
            self.store(field, chunk, self.generate(*unzip([missing[pair] for pair in chunk])))
        return [self.find(*pair, field) for pair in pairs]

    def store(self, field, pairs, texts):
        """Keep new answers, and append them to the file."""
        if len(texts) != len(pairs) or not all(isinstance(text, str) for text in texts):
            raise UserError(f'the model returned {len(texts)} answers to {len(pairs)} prompts, or one that is no text')
        lines = []
        for pair, text in zip(pairs, texts):
            caption, image = key = self.key(*pair)
            self.answers.setdefault(key, {})[field] = text
            lines.append({'caption': caption, 'image': image, field: text})
        append_lines(self.path, lines)

    def missing_error(self, field, pairs):
        caption, image = self.key(*pairs[0])
        return UserError(f"{self.path} lacks '{field}' of {len(pairs)} pairs of a caption and an image, the first of "
                         f'them {image} with "{caption[:60]}": add lines to it (docs/icl.md), or give --model')


def keep_usable(text, caption):
    """Return a rewritten caption, or the caption itself if the text is empty or cannot be read."""
    problem = caption_problem(text)
    if problem:
        logger.warning("a rewritten caption is %s: the caption '%s' stays as it is", problem, caption[:60])
    return caption if problem else text


def unzip(pairs):
    """Split a list of pairs into two lists."""
    return [first for first, _ in pairs], [second for _, second in pairs]


def read_answers(path, is_optional=False):
    """Read a file of answers: ``{(caption, image): {field: text}}``.

    If the file is going to be continued, a last line that an interruption cut off is removed, and a complete last line
    gets its newline.

    Args:
        path: the file.
        is_optional: whether the file may be missing, because it is going to be written.
    """
    check_regular_file(path)
    if not os.path.isfile(path):
        if is_optional:
            return {}
        raise UserError(f"--answers: there is no file {path}: give the file of a model's answers, or --model, whose "
                        'answers are written to it')
    answers = {}
    with open(path, 'rb+' if is_optional else 'rb') as file:
        content = file.read()
        end = content.rfind(b'\n') + 1
        if is_optional and end < len(content):
            if is_json(content[end:]):
                file.write(b'\n')
            else:
                file.truncate(end)
                content = content[:end]
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            row = parse_line(line, f'{path}, line {number}')
            fields = {field: row[field] for field in FIELDS if field in row}
            answers.setdefault((row['caption'], row['image']), {}).update(fields)
    return answers


def is_json(line):
    """Whether a line holds one complete value of JSON."""
    try:
        parse_json(line.decode('utf-8'))
    except ValueError:
        return False
    return True


def parse_line(line, location):
    """Parse a line of a file of answers and check its fields."""
    try:
        row = parse_json(line.decode('utf-8'))
    except ValueError as error:
        raise UserError(f'{location} is not JSON: {error}') from None
    names = ('caption', 'image', *(field for field in FIELDS if isinstance(row, dict) and field in row))
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        raise UserError(f"{location} is no mapping with the texts 'caption', 'image' and {', '.join(FIELDS)}")
    return row


def append_lines(path, rows):
    """Append mappings to a file, one line of JSON each."""
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with open(path, 'a', encoding='utf-8') as file:
            file.writelines(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from None
