"""Find people in a folder of photos:
``python -m run_scripts.search --config_file <run>/configs.yaml --images photos --caption "a red coat"``.

Photos are embedded the first time and kept in ``<photos>/.pedestal``; later searches embed what is new. Interrupted, it goes on where it
was. Photos that cannot be read are named and left out. The search is exact. ``--faiss`` makes a FAISS index of the embeddings and
searches that one, and prints its recall.
"""
import json
import time

from run_scripts import start
import pedestal
from processor.photos import import_faiss
from run_scripts.retrieve import draw, in_words
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.options import build_test_parser, count, parse_test_options
from utils.pictures import check_picture, save_picture
from utils.terminal import one_line


def main(argv=None):
    parser = build_test_parser('search.py', __doc__)
    parser.add_argument('--images', required=True, help='the folder with the photos')
    parser.add_argument('--caption', action='append', required=True, help='a description; may be given several times')
    parser.add_argument('--top', type=count, default=10, help='photos a description')
    parser.add_argument('--index', help='where the embeddings are kept, instead of <images>/.pedestal')
    parser.add_argument('--out', help='a picture (.png, .pdf) or a .json file to write')
    parser.add_argument('--faiss', action='store_true', help='search by a FAISS index, approximately: for millions of photos')
    args = parse_test_options(parser, argv)
    if args.out and not args.out.endswith('.json'):
        check_picture(args.out)
    if args.faiss:
        import_faiss()   # before photos are embedded, which may take long
    people = pedestal.People(args)
    queries = people.encode_captions(args.caption)
    photos = people.photos(args.images, args.index)
    tell(photos)
    begin = time.perf_counter()
    found = (photos.search_approximately if args.faiss else photos.search)(queries, args.top)
    took = time.perf_counter() - begin
    rows = [(caption, None, [(path, None, score) for path, score in best]) for caption, best in zip(args.caption, found)]
    print(in_words(rows))
    print(f'{len(photos.paths)} photos, {took / len(found):.3f} s a description')
    if args.faiss:
        print(f'FAISS finds {100 * recall(found, photos.search(queries, args.top)):.1f}% of the {args.top} best')
    if args.out:
        write(args.out, rows)
        print(f'wrote {args.out}')


def tell(photos):
    """What a user should know of the photos before trusting what is found."""
    for why in list(photos.broken.values())[:10]:
        print(f'left out: {one_line(why)}')
    if len(photos.broken) > 10:
        print(f'and {len(photos.broken) - 10} more; {photos.lines_path} names all')
    for line in photos.skipped:
        print(f'left out: {one_line(line)}')
    if photos.others:
        others = len(photos.others)
        print(f"{photos.place} also holds embeddings of {others} other model{'s' * (others > 1)}, which are not used")
    if not photos.paths:
        raise UserError(f'none of the {len(photos.broken)} photos below {photos.folder} can be read')


def recall(found, exact):
    """The share of the exact results that were found."""
    pairs = [({path for path, _ in ours}, {path for path, _ in best}) for ours, best in zip(found, exact)]
    return sum(len(ours & best) for ours, best in pairs) / sum(len(best) for _, best in pairs)


def write(path, rows):
    if not path.endswith('.json'):
        save_picture(draw(rows), path)
        return
    content = [{'caption': caption, 'photos': [{'path': photo, 'score': score} for photo, _, score in best]} for caption, _, best in rows]
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)


if __name__ == '__main__':
    start(main)
