"""The attributes of synthpedes: labels from ``attributes.json`` with prompts.

With them, pretraining and recognition of attributes run without a download. Colors are those of the outer garment,
which is visible in the image.
"""
from utils.errors import UserError

COLORS = ('black', 'white', 'blue', 'red', 'grey', 'green')


def base_color(tone):
    """The base color of a tone: ``'dark blue'`` -> ``'blue'``."""
    return tone.split()[-1]


def wears_color(garment, color):
    """A function from a person to 1 if the outer garment has the color, else 0."""
    return lambda person: int(base_color(outer_garment(person, garment)['colour']) == color)


def outer_garment(person, garment):
    if garment == 'upper':
        return person['jacket'] or person['upper']
    return person['lower'] or person['upper']


# {name: (prompt for label 0, prompt for label 1, function from a person to the label)}
ATTRIBUTES = {
    'man': ('the person is a woman', 'the person is a man', lambda person: int(person['gender'] == 'man')),
    'long hair': ('the person has no long hair', 'the person has long hair',
                  lambda person: int(person['hair']['length'] == 'long')),
    'jacket': ('the person wears no jacket or coat', 'the person wears a jacket or a coat',
               lambda person: int(bool(person['jacket']))),
    'backpack': ('the person has no backpack', 'the person has a backpack',
                 lambda person: int(bool(person['bag']) and person['bag']['kind'] == 'backpack')),
    'bag': ('the person carries no bag', 'the person carries a bag', lambda person: int(bool(person['bag']))),
    'hat': ('the person has no hat', 'the person has a hat', lambda person: int(bool(person['hat']))),
    'glasses': ('the person has no glasses', 'the person has glasses', lambda person: int(bool(person['glasses']))),
    'holds': ('the person holds nothing', 'the person holds something', lambda person: int(bool(person['held']))),
    # Sleeves under a jacket are not visible.
    'short sleeves': ('the person has long sleeves', 'the person has short sleeves',
                      lambda person: -1 if person['jacket'] else int(person['upper']['sleeves'] != 'long')),
    **{f'{color} {garment}': (f'the {garment} clothes are not {color}', f'the {garment} clothes are {color}',
                              wears_color(garment, color))
       for garment in ('upper', 'lower') for color in COLORS},
}
PROMPTS = [(zero, one) for zero, one, _ in ATTRIBUTES.values()]


def labels_by_pid(people, source):
    """Read labels from the content of ``attributes.json``.

    Args:
        people: the content of the file, a list of persons.
        source: the file's path, for the error.

    Returns:
        ``{pid: [1, 0 or -1 for each of ATTRIBUTES]}``.

    Raises:
        UserError: the content is not what synthpedes writes.
    """
    try:
        return {person['id']: [label(person) for *_, label in ATTRIBUTES.values()] for person in people}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f'{source} does not hold the labels that datasets.synthpedes writes') from None
