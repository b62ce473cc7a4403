"""The identities of synthpedes as labels, and captions that describe them.

A *person* is a nested dict of labels (an entry of ``attributes.json``). A *tone* is the name of a color with its shade
(``'dark blue'``). A *slot* is a key of a person, such as 'upper' or 'bag'. A *scene* is how one image shows the person
(``drawing.Scene``).
"""
import copy

# {tone: (sRGB, names in captions)}; the last word of a tone is its base color
TONES = {
    'black': ((26, 26, 30), ['black']),
    'white': ((236, 236, 234), ['white']),
    'dark blue': ((27, 38, 96), ['dark blue', 'navy', 'navy blue']),
    'blue': ((38, 88, 200), ['blue', 'bright blue', 'royal blue']),
    'light blue': ((126, 184, 232), ['light blue', 'sky blue', 'pale blue']),
    'red': ((206, 32, 40), ['red', 'bright red']),
    'dark red': ((124, 22, 42), ['dark red', 'maroon', 'burgundy']),
    'dark grey': ((72, 74, 79), ['dark grey', 'dark gray', 'charcoal']),
    'grey': ((128, 130, 133), ['grey', 'gray']),
    'light grey': ((186, 188, 191), ['light grey', 'light gray', 'pale grey']),
    'dark green': ((22, 76, 46), ['dark green', 'forest green']),
    'green': ((44, 154, 74), ['green', 'bright green']),
    'light green': ((152, 210, 134), ['light green', 'pale green', 'mint green']),
    'yellow': ((242, 212, 46), ['yellow', 'bright yellow']),
    'brown': ((122, 76, 44), ['brown']),
    'dark brown': ((72, 46, 33), ['dark brown', 'chocolate brown']),
    'pink': ((238, 112, 164), ['pink', 'bright pink']),
    'light pink': ((246, 190, 206), ['light pink', 'pale pink']),
    'purple': ((122, 56, 160), ['purple', 'violet']),
    'light purple': ((184, 154, 220), ['light purple', 'lavender', 'lilac']),
    'orange': ((240, 124, 30), ['orange', 'bright orange']),
    'beige': ((208, 188, 152), ['beige', 'tan', 'khaki', 'cream']),
}
COLORS = ('black', 'white', 'blue', 'red', 'grey', 'green', 'yellow', 'brown', 'pink', 'purple', 'orange', 'beige')
DARK = ('black', 'dark blue', 'dark grey', 'dark green', 'dark brown', 'dark red')
LIGHT = ('white', 'light grey', 'beige', 'light blue', 'light pink')
JEANS = ('dark blue', 'blue', 'light blue', 'black', 'dark grey')
HAIR = {'black': (28, 24, 24), 'brown': (92, 58, 36), 'blonde': (222, 184, 108), 'grey': (172, 172, 174),
        'red': (172, 72, 34)}
SKIN = {'light': (236, 192, 164), 'medium': (198, 144, 106), 'dark': (116, 76, 54)}

# The weight of each base color; other colors have a weight of 1.
UPPER_WEIGHTS = {'black': 14, 'white': 13, 'blue': 12, 'grey': 9, 'red': 7, 'green': 5, 'yellow': 4, 'pink': 4,
                 'purple': 3, 'orange': 3, 'brown': 3, 'beige': 2}
LOWER_WEIGHTS = {'black': 15, 'blue': 14, 'grey': 9, 'white': 4, 'brown': 4, 'beige': 4, 'green': 2, 'red': 2}
THING_WEIGHTS = {'black': 9, 'white': 5, 'brown': 5, 'grey': 4, 'red': 5, 'blue': 5}

NOUNS = {
    'T-shirt': ['T-shirt', 'T-shirt', 'tee', 'shirt', 'top'], 'shirt': ['shirt', 'shirt', 'button-up shirt'],
    'blouse': ['blouse', 'blouse', 'top'], 'polo shirt': ['polo shirt', 'polo', 'shirt'],
    'sweater': ['sweater', 'pullover', 'jumper'], 'hoodie': ['hoodie', 'hooded sweatshirt', 'hooded top'],
    'tank top': ['tank top', 'sleeveless top'], 'dress': ['dress'],
    'jacket': ['jacket'], 'coat': ['coat', 'overcoat'], 'cardigan': ['cardigan'], 'vest': ['vest', 'sleeveless jacket'],
    'trousers': ['trousers', 'pants', 'slacks'], 'jeans': ['jeans', 'jeans', 'denim pants', 'denim trousers'],
    'leggings': ['leggings', 'tight pants'], 'shorts': ['shorts'], 'skirt': ['skirt'],
    'sneakers': ['sneakers', 'trainers', 'sports shoes', 'shoes'], 'boots': ['boots'], 'sandals': ['sandals'],
    'leather shoes': ['leather shoes', 'dress shoes', 'shoes'],
    'backpack': ['backpack', 'rucksack', 'backpack'], 'shoulder bag': ['shoulder bag', 'messenger bag'],
    'handbag': ['handbag', 'bag', 'purse'],
    'cap': ['cap', 'baseball cap'], 'beanie': ['beanie', 'knit hat', 'woolly hat'],
    'sun hat': ['sun hat', 'wide-brimmed hat'],
    'phone': ['phone', 'mobile phone', 'cell phone'], 'umbrella': ['umbrella', 'folded umbrella'],
    'bottle': ['bottle', 'water bottle', 'bottle of water'], 'paper': ['sheet of paper', 'piece of paper', 'leaflet'],
    'cup': ['cup', 'paper cup', 'cup of coffee'],
}
UPPERS = {'man': {'T-shirt': 6, 'shirt': 4, 'polo shirt': 3, 'sweater': 3, 'hoodie': 3, 'tank top': 1},
          'woman': {'T-shirt': 4, 'blouse': 4, 'sweater': 3, 'hoodie': 2, 'tank top': 2, 'dress': 4}}
LOWERS = {'man': {'trousers': 5, 'jeans': 4, 'shorts': 4},
          'woman': {'trousers': 3, 'jeans': 3, 'skirt': 5, 'shorts': 2, 'leggings': 2}}
SLEEVES = {'T-shirt': ('short', 'short', 'short', 'long'), 'shirt': ('long', 'long', 'short'),
           'blouse': ('long', 'short'), 'polo shirt': ('short',), 'sweater': ('long',), 'hoodie': ('long',),
           'tank top': ('none',), 'dress': ('none', 'short', 'long')}
LENGTHS = {'trousers': ('long', 'long', 'long', 'cropped'), 'jeans': ('long', 'long', 'long', 'cropped'),
           'leggings': ('long',), 'shorts': ('short', 'knee-length'), 'skirt': ('short', 'knee-length', 'long'),
           'dress': ('short', 'knee-length', 'long')}
JACKETS = {'jacket': 'hip', 'coat': 'knee', 'cardigan': 'hip', 'vest': 'waist'}
SHOES = {'man': {'sneakers': 6, 'boots': 2, 'leather shoes': 3, 'sandals': 1},
         'woman': {'sneakers': 5, 'boots': 3, 'leather shoes': 2, 'sandals': 2}}
BAGS = {'man': {'backpack': 5, 'shoulder bag': 3}, 'woman': {'backpack': 3, 'shoulder bag': 3, 'handbag': 3}}
HATS = {'man': {'cap': 3, 'beanie': 2}, 'woman': {'cap': 2, 'beanie': 1, 'sun hat': 2}}
HELD = ('phone', 'umbrella', 'bottle', 'paper', 'cup')


def base_color(tone):
    """The base color of a tone: ``'dark blue'`` -> ``'blue'``."""
    return tone.split()[-1]


def _sample_weighted(rng, weights):
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _sample_tone(rng, weights, colors, avoid=()):
    """Sample a tone of the first ``colors`` base colors without those in ``avoid``."""
    names = [c for c in COLORS[:colors] if c not in avoid]
    name = rng.choices(names, weights=[weights.get(c, 1) for c in names])[0]
    return rng.choice([t for t in TONES if base_color(t) == name])


def _sample_contrasting_tone(rng, tone, colors):
    """Sample a color for stripes, dots or a logo that is visible on ``tone``."""
    def brightness(t):
        return sum(TONES[t][0]) / 3
    known = [t for t in TONES if base_color(t) in COLORS[:colors] and ' ' not in t
             and abs(brightness(t) - brightness(tone)) > 60]
    return rng.choice(known) if known else ('white' if brightness(tone) < 128 else 'black')


def _sample_upper(rng, gender, colors):
    kind = _sample_weighted(rng, UPPERS[gender])
    tone = _sample_tone(rng, UPPER_WEIGHTS, colors)
    patterns = {'plain': 10, 'striped': 3, 'checked': 2 if kind in ('shirt', 'blouse', 'dress') else 0,
                'dotted': 2 if kind in ('blouse', 'dress') else 0,
                'logo': 4 if kind in ('T-shirt', 'hoodie', 'sweater') else 0,
                'two-tone': 2 if kind in ('T-shirt', 'hoodie', 'sweater', 'polo shirt') else 0}
    pattern = _sample_weighted(rng, patterns)
    upper = {'kind': kind, 'colour': tone, 'pattern': pattern,
             'second': None if pattern == 'plain' else _sample_contrasting_tone(rng, tone, colors),
             'sleeves': rng.choice(SLEEVES[kind])}
    if kind == 'dress':
        upper['length'] = rng.choice(LENGTHS[kind])
    return upper


def _sample_lower(rng, gender, colors):
    kind = _sample_weighted(rng, LOWERS[gender])
    tone = _sample_tone(rng, LOWER_WEIGHTS if kind != 'skirt' else UPPER_WEIGHTS, colors)
    if kind == 'jeans':
        tone = rng.choice([t for t in JEANS if base_color(t) in COLORS[:colors]] or ['blue'])
    patterns = {'plain': 8, 'striped': 1 if kind in ('trousers', 'shorts') else 0,
                'checked': 1 if kind in ('skirt', 'shorts') else 0,
                'dotted': 1 if kind == 'skirt' else 0}
    pattern = _sample_weighted(rng, patterns)
    return {'kind': kind, 'colour': tone, 'pattern': pattern,
            'second': None if pattern == 'plain' else _sample_contrasting_tone(rng, tone, colors),
            'length': rng.choice(LENGTHS[kind])}


def _sample_hair(rng, gender):
    length = rng.choices(('bald', 'short', 'shoulder-length', 'long'),
                         weights=(1, 8, 1, 0.5) if gender == 'man' else (0, 3, 4, 6))[0]
    style = rng.choice(('loose', 'loose', 'ponytail', 'bun')) if length == 'long' else 'loose'
    color = None if length == 'bald' else rng.choices(list(HAIR), weights=(6, 5, 4, 2, 2))[0]
    return {'colour': color, 'length': length, 'style': style}


def sample_person(rng, colors=12):
    """Sample an identity's labels.

    Args:
        rng: a ``random.Random``.
        colors: the number of base colors in use, the first of ``COLORS``.
    """
    gender = rng.choice(('man', 'woman'))
    upper = _sample_upper(rng, gender, colors)
    person = {
        'gender': gender, 'build': rng.choice(('slim', 'average', 'average', 'heavy')),
        'height': rng.choice(('short', 'average', 'average', 'tall')),
        'skin': rng.choice(('light', 'light', 'medium', 'dark')), 'hair': _sample_hair(rng, gender), 'upper': upper,
        'jacket': None, 'lower': None if upper['kind'] == 'dress' else _sample_lower(rng, gender, colors),
        'shoes': {'kind': _sample_weighted(rng, SHOES[gender]), 'colour': _sample_tone(rng, THING_WEIGHTS, colors)},
        'bag': None, 'hat': None, 'scarf': None, 'glasses': None, 'held': None}
    if rng.random() < 0.25:
        kind = rng.choice(list(JACKETS))
        tone = _sample_tone(rng, UPPER_WEIGHTS, colors, avoid=(base_color(upper['colour']),))
        person['jacket'] = {'kind': kind, 'colour': tone, 'length': JACKETS[kind]}
    if rng.random() < 0.6:
        kind = _sample_weighted(rng, BAGS[gender])
        person['bag'] = {'kind': kind, 'colour': _sample_tone(rng, THING_WEIGHTS, colors)}
    if rng.random() < 0.3:
        kind = _sample_weighted(rng, HATS[gender])
        person['hat'] = {'kind': kind, 'colour': _sample_tone(rng, THING_WEIGHTS, colors)}
    if rng.random() < 0.1:
        person['scarf'] = {'colour': _sample_tone(rng, UPPER_WEIGHTS, colors)}
    if rng.random() < 0.25:
        person['glasses'] = rng.choice(('glasses', 'sunglasses'))
    if rng.random() < 0.35:
        person['held'] = rng.choice(HELD)
    return person


def sample_twin(person, rng, colors=12):
    """Copy ``person`` and change exactly one label visibly."""
    twin = copy.deepcopy(person)
    changes = []
    for slot in ('upper', 'lower', 'jacket', 'shoes', 'bag', 'hat', 'scarf'):
        thing = person[slot]
        if thing:
            avoid = {base_color(thing['colour']), base_color(thing.get('second') or thing['colour'])}
            tones = JEANS if thing.get('kind') == 'jeans' else TONES
            known = [t for t in tones if base_color(t) in COLORS[:colors] and base_color(t) not in avoid]
            changes += [(slot, 'colour', known)] if known else []
    if person['bag']:
        changes.append(('bag', 'kind', [k for k in BAGS[person['gender']] if k != person['bag']['kind']]))
    if person['hair']['colour']:
        changes.append(('hair', 'colour', [c for c in HAIR if c != person['hair']['colour']]))
    changes.append((None, 'glasses', [g for g in (None, 'sunglasses') if g != person['glasses']]))
    changes.append((None, 'held', [h for h in (None, *HELD) if h != person['held']]))
    slot, key, known = rng.choice(changes)
    (twin[slot] if slot else twin)[key] = rng.choice(known)
    return twin


def flatten_labels(labels, prefix=''):
    """Flatten an identity's labels: ``{'upper.colour': 'red', ...}``. A missing slot is one None."""
    flat = {}
    for key, value in labels.items():
        flat.update(flatten_labels(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value})
    return flat


# --- sentences -------------------------------------------------------------------------------------------------

SUBJECT_NOUNS = {'man': ['man', 'man', 'man', 'man', 'guy', 'gentleman', 'male pedestrian'],
            'woman': ['woman', 'woman', 'woman', 'woman', 'lady', 'female pedestrian']}
BODY_WORDS = {'slim': ['slim', 'thin', 'slender'], 'heavy': ['heavy', 'stout', 'heavyset'], 'tall': ['tall'],
              'short': ['short']}
PLACES = {  # {background: (phrases for walking, phrases for standing)}
    'street': (['along the street', 'down the street', 'along the pavement', 'on the sidewalk'],
               ['on the street', 'on the pavement', 'on the sidewalk', 'at the roadside']),
    'wall': (['past a wall', 'along a wall', 'by a wall'], ['in front of a wall', 'next to a wall', 'beside a wall']),
    'grass': (['across the grass', 'through a park', 'past a lawn'], ['on the grass', 'in a park', 'on a lawn']),
    'crossing': (['across the road', 'over a zebra crossing', 'over a pedestrian crossing'],
                 ['at a crossing', 'on a zebra crossing', 'in the road']),
    'indoor': (['through a hall', 'along a corridor', 'down a hallway'], ['in a hall', 'in a corridor', 'indoors']),
}
VIEWS = {'front': ['is facing the camera', 'is looking towards the camera', 'faces the viewer'],
         'back': ['is seen from behind', 'has {his} back to the camera', 'is facing away from the camera'],
         'side': ['is seen from the side', 'is shown in profile', 'is turned sideways']}
POSES = (['walks at an easy pace', 'takes a step forward', 'looks straight ahead',
          'has one foot in front of the other'],
         ['stands still', 'stands with {his} feet apart', 'looks straight ahead', 'keeps {his} arms close to the body'])
PATTERN_WORDS = {'striped': ['striped'], 'checked': ['checked', 'checkered', 'plaid'],
                 'dotted': ['dotted', 'polka-dot']}
LOGO_WORDS = ['a {c} logo on the chest', 'a {c} print on the front', 'a {c} picture on the front',
              'a {c} design on the chest']
SIZES = {'long': ['long'], 'cropped': ['cropped', 'ankle-length'], 'short': ['short'], 'knee-length': ['knee-length']}
OPTIONAL = ('hair', 'shoes', 'bag', 'hat', 'scarf', 'glasses', 'held')


def color_phrase(tone, rng, shades):
    """Choose a name for ``tone``. A larger ``shades`` means more names without the shade, or with 'dark' only."""
    if rng.random() < 0.15 * shades and tone in DARK + LIGHT:
        return rng.choice(('dark', 'dark-colored') if tone in DARK else ('light-colored', 'light-coloured'))
    if rng.random() < 0.5 * shades:
        return base_color(tone)
    return rng.choice(TONES[tone][1])


def _add_article(phrase):
    return ('an ' if phrase[0] in 'aeiou' else 'a ') + phrase


def _join_phrases(items, rng):
    """Join phrases to 'a, b and c', with a comma before 'and' if a phrase contains 'and'."""
    if len(items) < 2:
        return ''.join(items)
    comma = ',' if len(items) > 2 and (rng.random() < 0.3 or any(' and ' in i for i in items)) else ''
    return f'{", ".join(items[:-1])}{comma} and {items[-1]}'


class _CaptionWords:
    """The phrases of one caption. One random generator chooses all words and details."""

    def __init__(self, person, scene, rng, omission, shades):
        self.person, self.scene, self.rng, self.omission, self.shades = person, scene, rng, omission, shades
        self.he, self.his = ('he', 'his') if person['gender'] == 'man' else ('she', 'her')

    def keeps_detail(self):
        return self.rng.random() >= self.omission

    def color(self, tone):
        return color_phrase(tone, self.rng, self.shades)

    def color_and_pattern(self, thing):
        """Words for a garment's colors and pattern: ``(adjectives, phrases after the noun)``."""
        rng, first, pattern = self.rng, self.color(thing['colour']), thing.get('pattern', 'plain')
        if pattern == 'plain' or not self.keeps_detail() or (pattern == 'logo' and self.scene.view != 'front'):
            return [f'plain {first}' if pattern == 'plain' and rng.random() < 0.1 else first], []
        second = base_color(thing['second']) if first.startswith(('dark-', 'light-')) else self.color(thing['second'])
        if pattern == 'logo':
            return [first], [_add_article(rng.choice(LOGO_WORDS).format(c=second)[2:])]
        if pattern == 'two-tone':
            return rng.choice((([f'{first} and {second} two-tone'], []),
                               ([f'{first}'], [f'{_add_article(second)} lower half']),
                               ([f'{first} and {second} color-block'], [])))
        word = rng.choice(PATTERN_WORDS[pattern])
        if thing.get('kind') in ('trousers', 'shorts') and pattern == 'striped':
            return [first], [rng.choice(('{} stripes down the sides', '{} side stripes')).format(second)]
        marks = {'striped': 'stripes', 'checked': 'checks',
                 'dotted': rng.choice(('dots', 'polka dots', 'spots'))}[pattern]
        return rng.choice((([f'{first} and {second}', word], []), ([first], [f'{second} {marks}']),
                           ([word, f'{first} and {second}'], [])))

    def noun_phrase(self, adjectives, noun, after, plural=False):
        text = ' '.join([*adjectives, noun])
        if not plural:
            text = _add_article(text)
        elif self.rng.random() < 0.3:
            text = f'a pair of {text}'
        return text + (f' with {_join_phrases(after, self.rng)}' if after else '')

    def upper(self):
        upper, rng = self.person['upper'], self.rng
        adjectives, after = self.color_and_pattern(upper)
        noun = rng.choice(NOUNS[upper['kind']])
        if self.keeps_detail() and not self.person['jacket'] and 'sleeve' not in noun:
            sleeves = upper['sleeves']
            if sleeves == 'none':
                adjectives = (['sleeveless'] if noun == 'dress' else []) + adjectives
            elif rng.random() < 0.65:
                adjectives = [rng.choice((f'{sleeves}-sleeved', f'{sleeves} sleeve'))] + adjectives
            else:
                after = after + [f'{sleeves} sleeves']
        if upper['kind'] == 'dress' and self.keeps_detail() and not adjectives[0].startswith(upper['length']):
            adjectives = [rng.choice(SIZES[upper['length']])] + adjectives
        return self.noun_phrase(adjectives, noun, after)

    def outer(self):
        """The jacket and the visible garment under it."""
        jacket, rng = self.person['jacket'], self.rng
        if not jacket:
            return self.upper()
        adjectives = [self.color(jacket['colour'])]
        if jacket['kind'] == 'coat' and rng.random() < 0.4:
            adjectives = [rng.choice(('long', 'knee-length'))] + adjectives
        noun = rng.choice(NOUNS[jacket['kind']])
        if self.scene.view == 'back' or (self.scene.view == 'side' and rng.random() < 0.5):
            return self.noun_phrase(adjectives, noun, [])
        if rng.random() < 0.5:
            adjectives = [rng.choice(('open', 'unbuttoned', 'unzipped'))] + adjectives
        opened = self.noun_phrase(adjectives, noun, [])
        return rng.choice((f'{opened} over {self.upper()}', f'{self.upper()} under {opened}'))

    def lower(self):
        lower = self.person['lower']
        adjectives, after = self.color_and_pattern(lower)
        kind, length = lower['kind'], lower['length']
        # Captions do not say 'long jeans' or 'short shorts'.
        names_length = (kind == 'skirt' or length in ('cropped', 'knee-length')
                        or (kind == 'trousers' and self.rng.random() < 0.3))
        if names_length and self.keeps_detail():
            adjectives = [self.rng.choice(SIZES[lower['length']])] + adjectives
        return self.noun_phrase(adjectives, self.rng.choice(NOUNS[kind]), after, plural=kind != 'skirt')

    def thing(self, slot):
        """Shoes, bag, hat or scarf with its color."""
        thing = self.person[slot]
        noun = 'scarf' if slot == 'scarf' else self.rng.choice(NOUNS[thing['kind']])
        return self.noun_phrase([self.color(thing['colour'])], noun, [], plural=slot == 'shoes')

    def glasses(self):
        glasses = self.person['glasses']
        return self.rng.choice((glasses, glasses, f'a pair of {glasses}'))

    def hair(self):
        hair, rng = self.person['hair'], self.rng
        if hair['length'] == 'bald':
            return rng.choice(('a bald head', 'a shaved head'))
        color = rng.choice(('grey', 'gray')) if hair['colour'] == 'grey' else hair['colour']
        color = rng.choice(('blonde', 'blond', 'fair')) if color == 'blonde' else color
        if hair['style'] == 'ponytail':
            return rng.choice((f'a long {color} ponytail', f'{color} hair tied in a ponytail',
                               f'{color} hair in a ponytail'))
        if hair['style'] == 'bun':
            return rng.choice((f'{color} hair in a bun', f'{color} hair tied up in a bun'))
        return f'{hair["length"]} {color} hair' if self.keeps_detail() else f'{color} hair'

    def bag(self):
        kind, phrase = self.person['bag']['kind'], self.thing('bag')
        location = {'backpack': [f'on {self.his} back', 'on the back', f'on {self.his} shoulders'],
                 'shoulder bag': [f'over {self.his} shoulder', f'on {self.his} shoulder', 'across the body'],
                 'handbag': [f'in {self.his} hand', 'in one hand']}[kind]
        return f'{phrase} {self.rng.choice(location)}' if self.rng.random() < 0.5 else phrase

    def held(self):
        phrase = _add_article(self.rng.choice(NOUNS[self.person['held']]))
        location = self.rng.choice((f' in {self.his} hand', ' in one hand'))
        return phrase + location if self.rng.random() < 0.6 else phrase

    def subject(self):
        rng, person = self.rng, self.person
        words = [rng.choice(BODY_WORDS[person[k]]) for k in ('height', 'build')
                 if person[k] != 'average' and rng.random() < 0.3 * (1 - self.omission)]
        return ', '.join(words) + (' ' if words else '') + rng.choice(SUBJECT_NOUNS[person['gender']])

    def place(self):
        return self.rng.choice(PLACES[self.scene.background][0 if self.scene.walking else 1])

    def view(self):
        return self.rng.choice(VIEWS[self.scene.view]).format(his=self.his)

    def pose(self):
        return self.rng.choice(POSES[0 if self.scene.walking else 1]).format(his=self.his)

    def doing(self):
        known = ('walking', 'walking', 'strolling') if self.scene.walking else ('standing', 'standing', 'waiting')
        return self.rng.choice(known)


def _visible_slots(person, scene):
    """The slots that a caption of this image can mention."""
    seen = {slot for slot in ('hair', 'upper', 'lower', 'shoes', 'bag', 'hat', 'scarf', 'glasses', 'held')
            if person[slot]}
    seen -= set(scene.hidden)
    if scene.view == 'back':
        seen -= {'glasses'}
    if person['hat'] and person['hair']['length'] == 'bald':
        seen -= {'hair'}
    return seen


def _verb_phrases(words, mentioned, progressive):
    """Verb phrases for the slots ``mentioned``: ['wears glasses and white shoes', 'carries a black backpack']."""
    rng, phrases = words.rng, []

    def verb(stems):
        simple, continuous = rng.choice(stems)
        return f'is {continuous}' if progressive else simple
    if 'hair' in mentioned:
        phrases.append(f'has {words.hair()}')
    worn = [words.lower()] if 'lower' in mentioned else []
    extra = [words.glasses() if s == 'glasses' else words.thing(s) for s in ('hat', 'glasses', 'scarf', 'shoes')
             if s in mentioned]
    rng.shuffle(extra)
    if worn + extra:
        phrases.append(f'{verb((("wears", "wearing"), ("is wearing", "wearing")))} {_join_phrases(worn + extra, rng)}')
    if 'bag' in mentioned:
        phrases.append(f'{verb((("carries", "carrying"), ("has", "carrying")))} {words.bag()}')
    if 'held' in mentioned:
        phrases.append(f'{verb((("holds", "holding"), ("is holding", "holding")))} {words.held()}')
    if 'view' in mentioned:
        phrases.append(words.view())
    if 'pose' in mentioned:
        phrases.append(words.pose())
    rng.shuffle(phrases)
    return phrases


def _participle_phrases(words, mentioned):
    """Participle phrases for the slots ``mentioned``: 'carrying ..., holding ... and wearing ...'."""
    rng, phrases = words.rng, []
    extra = [words.glasses() if s == 'glasses' else words.thing(s) for s in ('hat', 'glasses', 'scarf')
             if s in mentioned]
    if extra:
        phrases.append(f'wearing {_join_phrases(extra, rng)}')
    if 'bag' in mentioned:
        phrases.append(f'carrying {words.bag()}')
    if 'held' in mentioned:
        phrases.append(f'holding {words.held()}')
    rng.shuffle(phrases)
    return _join_phrases(phrases, rng)


def _worn_phrases(words, mentioned):
    """The garments' phrases, usually the upper garment first."""
    items = ([words.outer()] if 'upper' in mentioned else []) + ([words.lower()] if 'lower' in mentioned else [])
    if words.rng.random() < 0.2:
        items.reverse()
    return items


def _second_sentence(words, mentioned):
    if not mentioned:
        return ''
    rng = words.rng
    if 'shoes' in mentioned and rng.random() < 0.3:
        rest = _verb_phrases(words, mentioned - {'shoes'}, rng.random() < 0.4)
        shoes = words.person['shoes']
        noun = rng.choice(NOUNS[shoes['kind']])
        phrase = f'{words.his.capitalize()} {noun} are {words.color(shoes["colour"])}'
        return phrase + (f' and {words.he} {_join_phrases(rest, rng)}.' if rest else '.')
    hair = words.person['hair']
    if 'hair' in mentioned and hair['style'] == 'loose' and hair['length'] != 'bald' and rng.random() < 0.3:
        rest = _verb_phrases(words, mentioned - {'hair'}, rng.random() < 0.4)
        phrase = f'{words.his.capitalize()} hair is {hair["length"]} and {hair["colour"]}'
        return phrase + (f', and {words.he} {_join_phrases(rest, rng)}.' if rest else '.')
    phrases = _verb_phrases(words, mentioned, rng.random() < 0.4)
    opening = words.he.capitalize() if rng.random() < 0.85 else f'The {words.person["gender"]}'
    return f'{opening} {_join_phrases(phrases, rng)}.'


def _first_sentence(words, mentioned):
    """Write the first sentence in one of several constructions: ``(sentence, slots that it mentions)``."""
    rng = words.rng
    used, place = {'upper', 'lower', 'place'}, f' {words.place()}' if 'place' in mentioned else ''
    worn = _worn_phrases(words, mentioned)
    if 'shoes' in mentioned and rng.random() < 0.55:
        worn.append(words.thing('shoes'))
        used.add('shoes')
    subject, hair = words.subject(), ''
    if 'hair' in mentioned and rng.random() < 0.6:
        bald = words.person['hair']['length'] == 'bald'
        subject, hair = (f'bald {subject}', '') if bald and rng.random() < 0.7 else (subject, f' with {words.hair()}')
        used.add('hair')
    a = rng.choice((_add_article(subject), _add_article(subject), f'the {subject}', f'this {subject}')) + hair
    clothes, doing = _join_phrases(worn, rng), words.doing()
    start = a[0].upper() + a[1:]
    opening = rng.choice(('Wearing', 'Dressed in'))
    while_ = f' while {doing}{place}' if place else ''
    forms = [f'{start} {rng.choice(("wears", "is wearing"))} {clothes}{while_}.'] * 2
    if place:
        forms += [f'{start} is {doing}{place} in {clothes}.', f'{start}, dressed in {clothes}, is {doing}{place}.',
                  f'{start} in {clothes} is {doing}{place}.', f'{opening} {clothes}, {a} is {doing}{place}.']
    else:
        forms += [f'{start} {rng.choice(("is dressed in", "has on"))} {clothes}.', f'{start} is {doing} in {clothes}.',
                  f'{opening} {clothes}, {a} is {doing} {rng.choice(("alone", "in this picture", "in the image"))}.']
    who = f' who is {doing}{place}' if place else ''
    shows = rng.choice(('The picture shows', 'The image shows', 'The camera shows', 'This is', 'We see'))
    described = f'{_add_article(subject)}{hair}'
    forms.append(rng.choice((f'There is {described} in {clothes}{who}.',
                             f'{shows} {described} {rng.choice(("wearing", "dressed in"))} {clothes}.')))
    if 'bag' in mentioned and rng.random() < 0.2:
        used.add('bag')
        return f'{rng.choice(("With", "Carrying"))} {words.bag()}, {a} is {doing}{place} in {clothes}.', used
    if rng.random() < 0.35 and mentioned & {'bag', 'held', 'hat', 'glasses', 'scarf'}:
        extras = _participle_phrases(words, mentioned)
        used |= {'bag', 'held', 'hat', 'glasses', 'scarf'}
        return f'{start} is {doing}{place} in {clothes}, {extras}.', used
    return rng.choice(forms), used


def _write_sentences(person, scene, mentioned, rng, omission, shades):
    words = _CaptionWords(person, scene, rng, omission, shades)
    first, used = _first_sentence(words, mentioned)
    second = _second_sentence(words, mentioned - used)
    return f'{first} {second}'.strip()


def write_caption(person, scene, rng, omission=0.2, shades=0.3, variety=1.0):
    """Write a caption of one or two sentences (20 to 40 words) for a person in a scene.

    Args:
        person: the labels of the identity.
        scene: the :class:`datasets.synthpedes.drawing.Scene`.
        rng: a ``random.Random``.
        omission: the probability that an attribute or a detail of a garment is omitted. A caption that would be too
            short mentions more, and one that would be too long mentions less.
        shades: how often names of colors omit the shade.
        variety: the probability that the wording is free. Otherwise see :func:`_write_plain_caption`.
    """
    seen = _visible_slots(person, scene)
    garments = seen & {'upper', 'lower'}
    is_plain = variety < 1 and rng.random() >= variety
    mentioned = {s for s in OPTIONAL if s in seen and rng.random() >= omission}
    if is_plain:
        return _write_plain_caption(person, garments | mentioned)
    mentioned |= {s for s in sorted(garments) if rng.random() >= 0.15 * omission} or garments
    mentioned |= {s for s, probability in (('place', 0.45), ('view', 0.15), ('pose', 0.05))
                  if rng.random() < probability}
    detail = omission
    while True:
        for _ in range(4):  # try other constructions of the same content
            text = _write_sentences(person, scene, mentioned, rng, detail, shades)
            if 20 <= len(text.split()) <= 40:
                return text
        if len(text.split()) > 40:
            candidates = sorted(mentioned - garments) or sorted(mentioned)
            mentioned -= {rng.choice(candidates)} if len(mentioned) > 1 else set()
            detail = min(1.0, detail + 0.1)
        else:
            # Phrases that do not describe the person are added first, so that ``omission`` keeps its meaning.
            candidates = [s for s in ('place', 'view', 'pose') if s not in mentioned]
            candidates = candidates or [s for s in sorted(seen) if s not in mentioned]
            mentioned |= {rng.choice(candidates)} if candidates else set()
            detail = max(0.0, detail - 0.1)


def _write_plain_caption(person, mentioned):
    """Write one sentence of a fixed pattern, with one name for each color and thing.

    It says nothing of patterns, of sleeves, of lengths, or of a garment under a jacket: 'A woman with long grey hair
    wears a blue hoodie, dark blue leggings, red boots and carries a black backpack.'
    """
    hair = person['hair']
    subject = _add_article(person['gender']).capitalize()
    if 'hair' in mentioned:
        bald = hair['length'] == 'bald'
        subject += ' with a bald head' if bald else f' with {hair["length"]} {hair["colour"]} hair'
    worn = [_plain_phrase(person, slot) for slot in ('upper', 'lower', 'shoes', 'hat', 'scarf') if slot in mentioned]
    worn += [person['glasses']] if 'glasses' in mentioned else []
    verbs = [f'wears {", ".join(worn)}']
    verbs += [f'carries {_plain_phrase(person, "bag")}'] if 'bag' in mentioned else []
    verbs += [f'holds {_add_article(NOUNS[person["held"]][0])}'] if 'held' in mentioned else []
    return f'{subject} {" and ".join(verbs)}.'


def _plain_phrase(person, slot):
    thing = person['jacket'] if slot == 'upper' and person['jacket'] else person[slot]
    noun = NOUNS[thing['kind']][0] if 'kind' in thing else slot
    phrase = f'{thing["colour"]} {noun}'
    return phrase if noun.endswith('s') and noun != 'dress' else _add_article(phrase)


def write_second_caption(person, scene, rng, shades=0.3, rewritings=3):
    """Write a second caption of a person in a scene, as ICL's annotations have them (:mod:`datasets.side_texts`).

    It mentions all that is visible: one sub-sentence about hair and clothes, and one about everything else, if there is
    anything.

    Args:
        person, scene, rng, shades: see :func:`write_caption`.
        rewritings: the number of rewritings of each sub-sentence.

    Returns:
        A list of sub-sentences, each a list of ``rewritings`` texts.
    """
    seen = _visible_slots(person, scene)
    clothes = seen & {'hair', 'upper', 'lower'}

    def rewrite(write):
        return [write(_CaptionWords(person, scene, rng, 0.0, shades)) for _ in range(rewritings)]
    sub_sentences = [rewrite(lambda words: _first_sentence(words, clothes)[0])]
    if seen - clothes:
        sub_sentences.append(rewrite(lambda words: _second_sentence(words, seen - clothes)))
    return sub_sentences
