"""Embeddings of a folder's photos, kept beside them: embedded once, searched from the disk.

An index is two files. ``<key>.jsonl`` names the model in its first line, and then a photo a line: its path below the folder, its size
and time, and for one that cannot be read why. ``<key>.<n>.f32`` holds the embeddings of the others, float32 of length 1, in the same
order. Vectors are written before the lines that speak of them, so that whatever ends a program, the lines tell what is whole.
The key is of the model, so that indexes of several models lie side by side.
"""
import contextlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from utils.errors import UserError
from utils.images import find_images
from utils.iotools import atomic_write, lock_folder
from utils.nearest import BLOCK, nearest

logger = logging.getLogger('Pedestal.search')

CHUNK = 256        # photos between two writes: what a killed program has to embed again
FOLDER = '.pedestal'


class Photos:
    """The photos below ``folder``, embedded and searchable.

    Args:
        folder: where the photos are; the folders in it are read, too.
        model: ``{'sha256': of its checkpoint, ...}``, all that an embedding hangs on; it is written into the index.
        key: what the files are called for this model.
        width: numbers of an embedding.
        place: where the index is kept; None: in ``<folder>/.pedestal``.

    Attributes:
        paths: [N] the photos that are there and can be read, as they are below ``folder``.
        broken: ``{path: why}`` of those that cannot be read.
        skipped: sentences that count and name the files and folders that are not searched.

    Raises:
        UserError: there is no such folder or no photo in it; the index is of another model, or damaged.
    """

    def __init__(self, folder, model, key, width, place=None):
        if not os.path.isdir(folder):
            raise UserError(f'there is no folder {folder}: name one with photos in it')
        self.folder, self.model, self.width = folder, model, width
        self.place = place or os.path.join(folder, FOLDER)
        self.lines_path = os.path.join(self.place, f'{key}.jsonl')
        self.now, self.skipped = listed(folder, self.place)
        if not self.now:
            skipped = ''.join(f'; skipped: {line}' for line in self.skipped)
            raise UserError(f'there are no photos below {folder} (JPEG, PNG and others that Pillow reads){skipped}')
        self.key = key
        self.read()

    # -- what is there -----------------------------------------------------------------------------------------------------

    def read(self):
        """Read the index as far as it is whole, and note which photos are in it as they are now."""
        head, self.lines = read_lines(self.lines_path)
        self.begun, self.generation = bool(head), head.get('generation', 0)
        if head and (head.get('model'), head.get('width')) != (self.model, self.width):
            raise UserError(f'{self.lines_path} is an index of another model (checkpoint {str(head.get("model", {}).get("sha256"))[:8]}, '
                            f'and this is {str(self.model["sha256"])[:8]}): remove it, or keep this one elsewhere with --index')
        held = os.path.getsize(self.vectors_path) // (4 * self.width) if head and os.path.exists(self.vectors_path) else 0
        self.rows, self.broken, known, row = {}, {}, set(), 0
        for number, (path, size, time, why) in enumerate(self.lines):
            if why is None and row == held:            # a disk that lost what it had promised to have written
                self.lines = self.lines[:number]
                break
            if self.now.get(path) == (size, time):
                known.add(path)
                if why is None:
                    self.rows[row] = path
                else:
                    self.broken[path] = why
            row += why is None
        self.held = row
        self.new = [path for path in self.now if path not in known]
        self.paths = list(self.rows.values())

    @property
    def vectors_path(self):
        return os.path.join(self.place, f'{self.key}.{self.generation}.f32')

    @property
    def others(self):
        """The keys of other models' indexes in the same place."""
        names = os.listdir(self.place) if os.path.isdir(self.place) else []
        return sorted(name[:-len('.jsonl')] for name in names if name.endswith('.jsonl') and name != os.path.basename(self.lines_path))

    def vectors(self):
        """[held, width] as they lie on the disk, those of photos that are gone or changed among them."""
        if not self.held:
            return np.empty((0, self.width), np.float32)
        return np.memmap(self.vectors_path, np.float32, 'c', shape=(self.held, self.width))

    # -- embedding ---------------------------------------------------------------------------------------------------------

    def update(self, read, encode, progress=True):
        """Embed what is not embedded yet. ``read``: path -> what ``encode`` takes a list of, and gives [K, width] of length 1 for.

        A photo that ``read`` refuses (:class:`UserError`) is noted and left out. May be interrupted at any time and goes on from there.
        """
        if not self.new:
            return
        try:
            os.makedirs(self.place, exist_ok=True)
        except OSError as error:
            raise self.unwritable(error) from None
        with lock_folder(self.place, 'let it finish, then search again'):
            self.read()                                             # what another program has done until now
            if not self.begun or 2 * len(self.rows) < self.held:
                self.rewrite()
            try:
                self.append(read, encode, progress)
            except OSError as error:
                raise self.unwritable(error) from None
            self.read()

    def append(self, read, encode, progress):
        with (open(self.vectors_path, 'ab') as vectors, open(self.lines_path, 'ab') as lines, ThreadPoolExecutor() as pool,
              tqdm(total=len(self.new), unit='photo', desc='embedding', disable=None if progress else True) as bar):
            vectors.truncate(self.held * self.width * 4)
            lines.truncate(self.whole_bytes())
            for start in range(0, len(self.new), CHUNK):
                chunk = self.new[start:start + CHUNK]
                found = list(pool.map(lambda path: read_or_why(read, os.path.join(self.folder, path)), chunk))
                good = [content for content, why in found if why is None]
                if good:
                    vectors.write(np.ascontiguousarray(encode(good), np.float32).tobytes())
                    settle(vectors)
                lines.write(''.join(line_of([path, *self.now[path], why]) for path, (_, why) in zip(chunk, found)).encode())
                settle(lines)
                bar.update(len(chunk))

    def whole_bytes(self):
        """The length of the index's lines as far as they are whole."""
        return len(self.head(self.generation).encode()) + sum(len(line_of(line).encode()) for line in self.lines)

    def head(self, generation):
        return line_of({'model': self.model, 'width': self.width, 'generation': generation})

    def rewrite(self):
        """Write the index anew, with what is still there: new vectors first, then, at once, the lines that name them."""
        before, vectors = self.vectors_path, self.vectors()
        self.generation += 1
        with atomic_write(self.vectors_path, 'wb') as file:
            for row in self.rows:
                file.write(vectors[row].tobytes())
        with atomic_write(self.lines_path) as file:
            file.write(self.head(self.generation))
            file.writelines(line_of([path, *self.now[path], None]) for path in self.paths)
            file.writelines(line_of([path, *self.now[path], why]) for path, why in self.broken.items())
        with contextlib.suppress(OSError):
            os.remove(before)
        self.read()

    def unwritable(self, error):
        return UserError(f'cannot write the index into {self.place}: {error.strerror or error}; keep it elsewhere with --index')

    # -- searching ---------------------------------------------------------------------------------------------------------

    def search(self, queries, top):
        """``[[(path, cosine similarity)]]``: for each of ``queries`` [Q, width], of length 1, the ``top`` photos, the best first."""
        vectors = self.vectors()
        gone = len(vectors) - len(self.rows)                        # embeddings of photos that are no longer there
        return self.named(*nearest(queries, vectors, top + gone), top)

    def search_approximately(self, queries, top):
        """:meth:`search` by a FAISS index (Johnson et al., 2017), ``<key>.<n>.faiss``, which is made where there is none of these photos.

        Vectors are divided into cells about the square root of their number, of which the nearest sixteenth, 8 or more, are searched.
        """
        faiss, vectors = import_faiss(), self.vectors()
        path = f'{self.vectors_path[:-len(".f32")]}.faiss'
        index = faiss.read_index(path) if os.path.exists(path) else None
        if index is None or index.ntotal != len(vectors):
            cells = max(1, min(int(len(vectors) ** 0.5), len(vectors) // 39))       # FAISS asks for 39 vectors a cell or more
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, cells, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors[::max(1, len(vectors) // (256 * cells))])
            for start in range(0, len(vectors), BLOCK):
                index.add(vectors[start:start + BLOCK])
            with atomic_write(path, 'wb') as file:
                file.write(faiss.serialize_index(index).tobytes())
        index.nprobe = min(index.nlist, max(8, index.nlist // 16))
        scores, rows = index.search(queries.numpy(), min(top + len(vectors) - len(self.rows), len(vectors)))
        return self.named(scores, rows, top)

    def named(self, scores, rows, top):
        """The photos of an index's rows, without those that are gone."""
        return [[(os.path.join(self.folder, self.rows[row]), score) for row, score in zip(places, values) if row in self.rows][:top]
                for places, values in zip(rows.tolist(), scores.tolist())]


def listed(folder, place):
    """Find the images below a folder, except those in ``place``.

    Returns:
        ``{path below folder: (size, time in ns)}``, and sentences on what is skipped.
    """
    found, own = {}, os.path.join(place, '')
    paths, skipped = find_images(folder)
    skipped.others = [path for path in skipped.others if not path.startswith(own)]
    for path in sorted(paths):
        if not path.startswith(own):
            with contextlib.suppress(OSError):                      # gone meanwhile, or a link to nowhere
                status = os.stat(path)
                found[path[len(folder):].lstrip(os.sep)] = status.st_size, status.st_mtime_ns
    return found, skipped.summary()


def read_or_why(read, path):
    """(content, None) of a file, or (None, why it cannot be read)."""
    try:
        return read(path), None
    except UserError as error:
        return None, str(error)


def import_faiss():
    try:
        import faiss
    except ImportError:
        raise UserError('--faiss needs FAISS: pip install faiss-cpu') from None
    return faiss


def line_of(content):
    return json.dumps(content) + '\n'


def read_lines(path):
    """(first line, the others) of an index; ({}, []) where there is none. A last line that is cut short is left out."""
    try:
        with open(path, 'rb') as file:
            head, *lines = file.read().split(b'\n')[:-1] or [b'{}']
            head, lines = json.loads(head), json.loads(b'[' + b','.join(lines) + b']')
    except (FileNotFoundError, NotADirectoryError):
        return {}, []
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except ValueError:
        raise UserError(f'{path} is damaged: remove it, and the photos are embedded again') from None
    if not isinstance(head, dict) or not all(isinstance(line, list) and len(line) == 4 for line in lines):
        raise UserError(f'{path} is no index of photos: remove it, and the photos are embedded again')
    return head, lines


def settle(file):
    file.flush()
    os.fsync(file.fileno())
