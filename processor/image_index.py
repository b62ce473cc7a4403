"""Embeddings of a folder's photos, kept beside them: embedded once, searched from the disk.

An index is two files. ``<key>.jsonl`` names the model in its first line, and then a photo a line: its path below the folder, its size
and time, for one that cannot be read why, and a CRC-32 of the line and the photo's embedding. ``<key>.<n>.f32`` holds the embeddings
of the others, float32 of length 1, in the same order. Vectors are written before the lines that speak of them, so that whatever ends a
program, the lines tell what is whole. All checksums are compared when an index is opened, and again if its file changes under a
program. Photos with a damaged line or embedding are embedded again.
The key is of the model, so that indexes of several models lie side by side.
"""
import contextlib
import glob
import json
import logging
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError
from utils.images import find_images
from utils.iotools import RandomReader, atomic_write, lock_folder, parse_json, refuse_irregular
from utils.nearest import BLOCK, nearest

logger = logging.getLogger('Pedestal.search')

CHUNK = 256        # photos between two writes: what a killed program has to embed again
FOLDER = '.pedestal'
LONGEST = 1.01     # of a cosine similarity: what is longer was not computed from embeddings
READ = 8192        # embeddings that are read at a time: a larger block is slower to allocate than to read


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
        head, self.raws, self.lines = read_lines(self.lines_path)
        self.seeds = [zlib.crc32(raw.rpartition(b', ')[0]) for raw in self.raws[1:]]      # of each line without its checksum
        self.begun, self.generation = bool(head), head.get('generation', 0)
        if head and (head.get('model'), head.get('width')) != (self.model, self.width):
            raise UserError(f'{self.lines_path} is an index of another model (checkpoint {str(head.get("model", {}).get("sha256"))[:8]}, '
                            f'and this is {str(self.model["sha256"])[:8]}): remove it, or keep this one elsewhere with --index')
        self.vectors = Vectors(self.vectors_path, self.width)
        damaged = self.damaged_lines()
        self.rows, self.broken, self.good, known, row = {}, {}, [], set(), 0
        for number, (path, size, time, why, _) in enumerate(self.lines):
            if why is None and row == len(self.vectors):            # a disk that lost what it had promised to have written
                self.lines = self.lines[:number]
                break
            if number not in damaged and self.now.get(path) == (size, time):
                known.add(path)
                self.good.append(number)
                if why is None:
                    self.rows[row] = path
                else:
                    self.broken[path] = why
            row += why is None
        self.held = self.vectors.count = row
        self.new = [path for path in self.now if path not in known]
        self.paths = list(self.rows.values())

    def damaged_lines(self):
        """The numbers of lines whose checksum is not that of the line and its embedding, which the log counts."""
        sums = iter(self.vectors.checksums(self.embedded(self.seeds)[:len(self.vectors)]))
        damaged = set()
        for number, ((*_, why, checksum), seed) in enumerate(zip(self.lines, self.seeds)):
            found = next(sums, checksum) if why is None else seed       # read() cuts the lines that have no embedding
            if found != checksum:
                damaged.add(number)
        self.damaged = len(damaged)
        if damaged:
            logger.warning('%s: %d of %d entries are damaged, and their photos are embedded again', self.lines_path, len(damaged),
                           len(self.lines))
        return damaged

    def embedded(self, values):
        """Those of the lines' ``values`` whose photos have an embedding."""
        return [value for value, line in zip(values, self.lines) if line[3] is None]

    @property
    def vectors_path(self):
        return os.path.join(self.place, f'{self.key}.{self.generation}.f32')

    @property
    def others(self):
        """The keys of other models' indexes in the same place."""
        names = os.listdir(self.place) if os.path.isdir(self.place) else []
        return sorted(name[:-len('.jsonl')] for name in names if name.endswith('.jsonl') and name != os.path.basename(self.lines_path))

    # -- embedding ---------------------------------------------------------------------------------------------------------

    def update(self, read, encode, progress=True):
        """Embed what is not embedded yet. ``read``: path -> what ``encode`` takes a list of, and gives [K, width] of length 1 for.

        A photo that ``read`` refuses (:class:`UserError`) is noted and left out. May be interrupted at any time and goes on from there.
        """
        if not self.new and not self.damaged:
            return
        try:
            os.makedirs(self.place, exist_ok=True)
        except OSError as error:
            raise self.unwritable(error) from None
        with lock_folder(self.place, 'let it finish, then search again'):
            self.read()                                             # what another program has done until now
            if not self.begun or self.damaged or 2 * len(self.rows) < self.held:
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
                embedded = iter(())
                if good:
                    rows = np.ascontiguousarray(encode(good), np.float32)
                    embedded = iter(rows)
                    vectors.write(rows.tobytes())
                    settle(vectors)
                for path, (_, why) in zip(chunk, found):
                    lines.write(line_of([path, *self.now[path], why], next(embedded) if why is None else b''))
                settle(lines)
                bar.update(len(chunk))

    def whole_bytes(self):
        """The length of the index's lines as far as they are whole."""
        return sum(len(raw) + 1 for raw in self.raws[:1 + len(self.lines)])

    def rewrite(self):
        """Write the index anew, with what is still there: new vectors first, then, at once, the lines that name them."""
        vectors = self.vectors
        self.generation += 1
        with atomic_write(self.vectors_path, 'wb') as file:
            for row in self.rows:
                file.write(vectors[row:row + 1].tobytes())
        with atomic_write(self.lines_path, 'wb') as file:
            file.write(head_of({'model': self.model, 'width': self.width, 'generation': self.generation}))
            file.writelines(self.raws[1 + number] + b'\n' for number in self.good)
        for other in glob.glob(f'{glob.escape(os.path.join(self.place, self.key))}.*.*'):
            if other.endswith(('.f32', '.faiss')) and other != self.vectors_path:
                with contextlib.suppress(OSError):
                    os.remove(other)
        self.read()

    def unwritable(self, error):
        return UserError(f'cannot write the index into {self.place}: {error.strerror or error}; keep it elsewhere with --index')

    # -- searching ---------------------------------------------------------------------------------------------------------

    def search(self, queries, top):
        """``[[(path, cosine similarity)]]``: for each of ``queries`` [Q, width], of length 1, the ``top`` photos, the best first."""
        self.refuse_changed()
        gone = self.held - len(self.rows)                           # embeddings of photos that are no longer there
        return self.named(*nearest(queries, self.vectors, top + gone, READ), top)

    def refuse_changed(self):
        """Compare the checksums again if another program has written into the file of embeddings."""
        if self.vectors.has_changed():
            if self.vectors.checksums(self.embedded(self.seeds)) != self.checksums():
                self.vectors.stamp = None       # refuse the next search, too
                raise UserError(f'another program changed {self.vectors.path}: start this one again, and damaged embeddings are '
                                'computed again')

    def search_approximately(self, queries, top):
        """:meth:`search` by a FAISS index (Johnson et al., 2017), ``<key>.<n>.faiss``, which is made where there is none of these photos.

        Vectors are divided into cells about the square root of their number, of which the nearest sixteenth, 8 or more, are searched.
        """
        self.refuse_changed()
        faiss, vectors = import_faiss(), self.vectors
        path = f'{vectors.path[:-len(".f32")]}.faiss'
        index = self.read_faiss(faiss, path)
        if index is None:
            cells = max(1, min(int(len(vectors) ** 0.5), len(vectors) // 39))       # FAISS asks for 39 vectors a cell or more
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, cells, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors[::max(1, len(vectors) // (256 * cells))])
            for start in range(0, len(vectors), BLOCK):
                index.add(vectors[start:start + BLOCK])
            content = faiss.serialize_index(index)
            with atomic_write(path, 'wb') as file:
                file.write(content.tobytes())
                file.write(np.array([self.embeddings_checksum(), zlib.crc32(content)], '<u4').tobytes())
        index.nprobe = min(index.nlist, max(8, index.nlist // 16))
        scores, rows = index.search(queries.numpy(), min(top + len(vectors) - len(self.rows), len(vectors)))
        return self.named(torch.from_numpy(scores), rows, top)

    def read_faiss(self, faiss, path):
        """The FAISS index in a file; None if there is none of these embeddings, or a damaged one, which the log says."""
        if not os.path.exists(path):
            return None
        content = np.fromfile(path, np.uint8)
        content, trailer = content[:-8], content[-8:].tobytes()
        if trailer[:4] != np.array(self.embeddings_checksum(), '<u4').tobytes():
            return None
        if trailer[4:] != np.array(zlib.crc32(content), '<u4').tobytes():
            logger.warning('%s is damaged and is made again', path)
            return None
        return faiss.deserialize_index(content)

    def embeddings_checksum(self):
        """Of all embeddings and photos of the index, in order."""
        return zlib.crc32(np.array(self.checksums(), '<u4').tobytes())

    def checksums(self):
        return self.embedded([line[4] for line in self.lines])

    def named(self, scores, rows, top):
        """The photos of an index's rows, without those that are gone."""
        if scores.numel() and not float(abs(scores).max()) <= LONGEST:
            raise UserError(f'{self.lines_path}: a similarity is {float(abs(scores).max()):.1e}, and the largest possible one is 1: the '
                            'embeddings are damaged; remove the index, and the photos are embedded again')
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


class Vectors:
    """The embeddings of an index on the disk; a slice of them is a float32 array [N, width], which is read when it is asked for.

    Attributes:
        count: how many there are; may be lowered.
    """

    def __init__(self, path, width):
        self.path, self.width, self.count, self.reader = path, width, 0, None
        try:
            self.reader = RandomReader(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror}') from None
        self.count, self.stamp = self.reader.status().st_size // (4 * width), self.stamp_now()

    def __len__(self):
        return self.count

    def __getitem__(self, rows):
        start, stop, step = rows.indices(self.count)
        if step != 1:
            return np.concatenate([self[row:row + 1] for row in range(start, stop, step)])
        block = np.empty((stop - start, self.width), np.float32)
        if block.size and self.reader.read_into(block, start * 4 * self.width) < block.nbytes:
            raise UserError(f'another program cut {self.path}: start this one again, which embeds the lost photos again')
        return block

    def checksums(self, seeds):
        """The CRC-32 of each of the first embeddings, which goes on from its seed."""
        sums, size = [], 4 * self.width
        self.stamp = self.stamp_now() if self.reader else None
        for start in range(0, len(seeds), READ):
            block = memoryview(self[start:start + READ]).cast('B')
            sums += [zlib.crc32(block[place * size:(place + 1) * size], seed) for place, seed in enumerate(seeds[start:start + READ])]
        return sums

    def has_changed(self):
        """Whether a program has written into the file since :meth:`checksums` read it."""
        return self.count > 0 and self.stamp != self.stamp_now()

    def stamp_now(self):
        status = self.reader.status()
        return status.st_size, status.st_mtime_ns


def line_of(content, vector):
    """A photo's line, bytes: ``content`` without the checksum, and its embedding's bytes, none for a photo that cannot be read."""
    text = json.dumps(content)[:-1].encode()
    return b'%s, %d]\n' % (text, zlib.crc32(vector, zlib.crc32(text)))


def head_of(content):
    """An index's first line, bytes."""
    return json.dumps({**content, 'crc32': zlib.crc32(json.dumps(content).encode())}).encode() + b'\n'


def read_lines(path):
    """(content of the first line, all lines as bytes, content of the others: path, size, time, why, checksum) of an index; ({}, [], [])
    if there is none. A last line that is cut short is left out."""
    refuse_irregular(path)
    try:
        with open(path, 'rb') as file:
            first, *raws = file.read().split(b'\n')[:-1] or [b'{}']
        head, lines = parse_json(first), parse_json(b'[' + b','.join(raws) + b']')
    except (FileNotFoundError, NotADirectoryError):
        return {}, [], []
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except ValueError:
        raise UserError(f'{path} is damaged: remove it, and the photos are embedded again') from None
    if not isinstance(head, dict) or not all(isinstance(line, list) and len(line) in (4, 5) for line in lines):
        raise UserError(f'{path} is no index of photos: remove it, and the photos are embedded again')
    if head and 'crc32' not in head:
        logger.warning('%s has no checksums, for an older version wrote it: the photos are embedded again', path)
        return {}, [], []
    if head and head_of({name: value for name, value in head.items() if name != 'crc32'}) != first + b'\n':
        raise UserError(f'{path} is damaged: remove it, and the photos are embedded again')
    if not all(len(line) == 5 for line in lines):
        raise UserError(f'{path} is damaged: remove it, and the photos are embedded again')
    return head, [first, *raws], lines


def settle(file):
    file.flush()
    os.fsync(file.fileno())
