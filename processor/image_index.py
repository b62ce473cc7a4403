"""An index of a folder's images: their embeddings, computed once and stored on disk.

An index consists of two files. Its key names the model, so that indexes of several models can share a folder.

- ``<key>.jsonl``: the first line describes the model. Every other line is an image: its path below the folder, its size
  and time, an error if it cannot be read, and the CRC-32 of the line and the image's embedding.
- ``<key>.<generation>.f32``: the embeddings of the readable images, normalized, float32, in the same order.

Embeddings are written before their lines, so that every line is valid after a crash. All checksums are compared when an
index is opened, and again if another program changes its file. An image with a damaged line or embedding is embedded
again.
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

from utils.errors import UserError, is_out_of_files
from utils.images import find_images
from utils.iotools import RandomReader, atomic_write, check_regular_file, lock_folder, parse_json
from utils.top_k import BLOCK, top_k

logger = logging.getLogger('Pedestal.search')

CHUNK_SIZE = 256        # images between two writes, which a killed program has to embed again
INDEX_FOLDER = '.pedestal'
MAX_SIMILARITY = 1.01   # of normalized embeddings, with a margin for rounding
READ_BLOCK = 8192       # embeddings that are read at once; allocating a larger block takes longer than reading it
MIN_CELL_SIZE = 39      # embeddings per cell that FAISS asks for


class ImageIndex:
    """The images below a folder, embedded and searchable.

    Args:
        folder: the folder of the images; its subfolders are included.
        model: ``{'sha256': checksum of the checkpoint, ...}``, everything that an embedding depends on. The index holds
            it.
        key: the name of the model in file names.
        width: the dimension of an embedding.
        index_dir: the folder of the index; None: ``<folder>/.pedestal``.

    Attributes:
        paths: [N] the indexed images that are readable, relative to the folder.
        new_paths: the images that are not indexed yet.
        broken: ``{path: error}`` of the images that cannot be read.
        skipped: sentences that count and name the files and folders that are not searched.
        rows: ``{row of the embedding file: path}`` of the images in ``paths``.
        embedding_count: the number of stored embeddings, with those of deleted images.
        reranked_searches: ``{settings: RerankedSearch}`` of the images in ``paths`` (:mod:`processor.reranked_search`).

    Raises:
        UserError: the folder is missing or has no images; the index belongs to another model, or it is damaged.
    """

    def __init__(self, folder, model, key, width, index_dir=None):
        if not os.path.isdir(folder):
            raise UserError(f'there is no folder {folder}: name a folder with photos')
        self.folder, self.model, self.width = folder, model, width
        self.index_dir = index_dir or os.path.join(folder, INDEX_FOLDER)
        self.entries_path = os.path.join(self.index_dir, f'{key}.jsonl')
        self.files, self.skipped = list_images(folder, self.index_dir)
        if not self.files:
            skipped = ''.join(f'; skipped: {line}' for line in self.skipped)
            raise UserError(f'there are no photos below {folder} (JPEG, PNG and others that Pillow reads){skipped}')
        self.key = key
        self.load()

    # -- reading the index ---------------------------------------------------------------------------------------------

    def load(self):
        """Read the valid part of the index, and compare it with the files in the folder."""
        header, self.raw_lines, self.entries = read_lines(self.entries_path)
        # The checksum of a line starts from that of its text and continues with its embedding.
        self.seeds = [zlib.crc32(line.rpartition(b', ')[0]) for line in self.raw_lines[1:]]
        self.exists, self.generation = bool(header), header.get('generation', 0)
        if header and (header.get('model'), header.get('width')) != (self.model, self.width):
            checksum = str(header.get('model', {}).get('sha256'))[:8]
            raise UserError(f'{self.entries_path} is an index of another model (checkpoint {checksum}, and this is '
                            f'{str(self.model["sha256"])[:8]}): remove it, or keep this one elsewhere with --index')
        self.embeddings = EmbeddingFile(self.embeddings_path, self.width)
        damaged = self.find_damaged_entries()
        self.rows, self.broken, self.valid_entries, known, row = {}, {}, [], set(), 0
        for number, (path, size, time, error, _) in enumerate(self.entries):
            if error is None and row == len(self.embeddings):   # the disk lost embeddings that it had confirmed
                self.entries = self.entries[:number]
                break
            if number not in damaged and self.files.get(path) == (size, time):
                known.add(path)
                self.valid_entries.append(number)
                if error is None:
                    self.rows[row] = path
                else:
                    self.broken[path] = error
            row += error is None
        self.embedding_count = self.embeddings.count = row
        self.reranked_searches = {}
        self.new_paths = [path for path in self.files if path not in known]
        self.paths = list(self.rows.values())

    def find_damaged_entries(self):
        """Return the numbers of the entries with a wrong checksum, and log their count."""
        checksums = iter(self.embeddings.checksums(self.with_embedding(self.seeds)[:len(self.embeddings)]))
        damaged = set()
        for number, ((*_, error, checksum), seed) in enumerate(zip(self.entries, self.seeds)):
            # load() drops entries whose embeddings are missing.
            actual = next(checksums, checksum) if error is None else seed
            if actual != checksum:
                damaged.add(number)
        self.damaged_count = len(damaged)
        if damaged:
            logger.warning('%s: %d of %d entries are damaged, and their photos are embedded again', self.entries_path,
                           len(damaged), len(self.entries))
        return damaged

    def with_embedding(self, values):
        """Select the values of those entries that have an embedding; ``values`` has one value per entry."""
        return [value for value, entry in zip(values, self.entries) if entry[3] is None]

    @property
    def embeddings_path(self):
        return os.path.join(self.index_dir, f'{self.key}.{self.generation}.f32')

    @property
    def other_keys(self):
        """The keys of other models' indexes in the same folder."""
        names = os.listdir(self.index_dir) if os.path.isdir(self.index_dir) else []
        keys = (name.removesuffix('.jsonl') for name in names if name.endswith('.jsonl'))
        return sorted(key for key in keys if key != self.key)

    # -- embedding -----------------------------------------------------------------------------------------------------

    def update(self, read, encode, progress=True):
        """Embed the images that are not indexed yet. It may be interrupted at any time; the next call continues.

        Args:
            read: a function from a path to an input of ``encode``. If it raises UserError, the image is skipped and the
                error is stored.
            encode: a function from a list of K inputs to normalized embeddings [K, width].
            progress: whether to show a progress bar.

        Raises:
            UserError: the index cannot be written, or another program is writing it.
        """
        if not self.new_paths and not self.damaged_count:
            return
        try:
            os.makedirs(self.index_dir, exist_ok=True)
        except OSError as error:
            raise self.write_error(error) from None
        with lock_folder(self.index_dir, 'let it finish, then search again'):
            self.load()                       # another program may have updated the index
            if not self.exists or self.damaged_count or 2 * len(self.rows) < self.embedding_count:
                self.rewrite()
            try:
                self.append(read, encode, progress)
            except OSError as error:
                raise self.write_error(error) from None
            self.load()

    def append(self, read, encode, progress):
        with (open(self.embeddings_path, 'ab') as embedding_file, open(self.entries_path, 'ab') as entry_file,
              ThreadPoolExecutor() as pool, tqdm(total=len(self.new_paths), unit='photo', desc='embedding',
                                                 disable=None if progress else True) as bar):
            embedding_file.truncate(self.embedding_count * self.width * 4)
            entry_file.truncate(self.valid_byte_count())
            for start in range(0, len(self.new_paths), CHUNK_SIZE):
                paths = self.new_paths[start:start + CHUNK_SIZE]
                results = list(pool.map(lambda path: try_read(read, os.path.join(self.folder, path)), paths))
                inputs = [content for content, error in results if error is None]
                embeddings = iter(())
                if inputs:
                    rows = np.ascontiguousarray(encode(inputs), np.float32)
                    embeddings = iter(rows)
                    embedding_file.write(rows.tobytes())
                    flush_to_disk(embedding_file)
                for path, (_, error) in zip(paths, results):
                    embedding = next(embeddings) if error is None else b''
                    entry_file.write(format_entry([path, *self.files[path], error], embedding))
                flush_to_disk(entry_file)
                bar.update(len(paths))

    def valid_byte_count(self):
        """Return the size of the valid lines of the index, in bytes."""
        return sum(len(line) + 1 for line in self.raw_lines[:1 + len(self.entries)])

    def rewrite(self):
        """Write a new generation of the index with the valid entries: first the embeddings, then all lines at once."""
        embeddings = self.embeddings
        self.generation += 1
        with atomic_write(self.embeddings_path, 'wb') as file:
            for row in self.rows:
                file.write(embeddings[row:row + 1].tobytes())
        with atomic_write(self.entries_path, 'wb') as file:
            file.write(format_header({'model': self.model, 'width': self.width, 'generation': self.generation}))
            file.writelines(self.raw_lines[1 + number] + b'\n' for number in self.valid_entries)
        for path in glob.glob(f'{glob.escape(os.path.join(self.index_dir, self.key))}.*.*'):
            if path.endswith(('.f32', '.faiss')) and path != self.embeddings_path:
                with contextlib.suppress(OSError):
                    os.remove(path)
        self.load()

    def write_error(self, error):
        if is_out_of_files(error):      # the image that could not be opened is not broken, and the index is writable
            return error
        return UserError(f'cannot write the index into {self.index_dir}: {error.strerror or error}; '
                         'keep it elsewhere with --index')

    # -- searching -----------------------------------------------------------------------------------------------------

    def search(self, queries, top):
        """Find the best images for each query, exactly.

        Args:
            queries: [Q, width] normalized embeddings.
            top: the number of images per query.

        Returns:
            ``[[(path, cosine similarity)]]``, the best first.

        Raises:
            UserError: another program damaged the index.
        """
        self.check_unchanged()
        deleted = self.embedding_count - len(self.rows)
        return self.format_matches(*top_k(queries, self.embeddings, top + deleted, READ_BLOCK), top)

    def read_embeddings(self):
        """Read the embeddings of all images in ``paths``, in this order: float32 [N, width].

        Raises:
            UserError: another program damaged the index.
        """
        self.check_unchanged()
        rows = torch.tensor(list(self.rows), dtype=torch.long)
        blocks = [torch.from_numpy(self.embeddings[start:start + READ_BLOCK])[
                      rows[(rows >= start) & (rows < start + READ_BLOCK)] - start]
                  for start in range(0, len(self.embeddings), READ_BLOCK)]
        return torch.cat(blocks) if blocks else torch.empty(0, self.width)

    def check_unchanged(self):
        """Compare the checksums again if another program has written into the embedding file."""
        if not self.embeddings.has_changed():
            return
        if self.embeddings.checksums(self.with_embedding(self.seeds)) != self.checksums():
            self.embeddings.stamp = None       # the next search fails also
            raise UserError(f'another program changed {self.embeddings.path}: start this one again, and damaged '
                            'embeddings are computed again')

    def search_approximately(self, queries, top):
        """Find the best images with a FAISS index (Johnson et al., 2017); see :meth:`search`.

        The index file ``<key>.<generation>.faiss`` is created if there is none of these images. It divides N embeddings
        into sqrt(N) cells. A search reads the nearest 1/16 of the cells, and at least 8.
        """
        self.check_unchanged()
        faiss, embeddings = import_faiss(), self.embeddings
        path = f'{embeddings.path.removesuffix(".f32")}.faiss'
        index = self.read_faiss(faiss, path)
        if index is None:
            cells = max(1, min(int(len(embeddings) ** 0.5), len(embeddings) // MIN_CELL_SIZE))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, cells, faiss.METRIC_INNER_PRODUCT)
            index.train(embeddings[::max(1, len(embeddings) // (256 * cells))])
            for start in range(0, len(embeddings), BLOCK):
                index.add(embeddings[start:start + BLOCK])
            content = faiss.serialize_index(index)
            with atomic_write(path, 'wb') as file:
                file.write(content.tobytes())
                file.write(to_bytes(self.embeddings_checksum()) + to_bytes(zlib.crc32(content)))
        index.nprobe = min(index.nlist, max(8, index.nlist // 16))
        deleted = len(embeddings) - len(self.rows)
        scores, rows = index.search(queries.numpy(), min(top + deleted, len(embeddings)))
        return self.format_matches(torch.from_numpy(scores), rows, top)

    def read_faiss(self, faiss, path):
        """Read a FAISS index; None if it is missing, damaged (a warning is logged) or of other embeddings."""
        if not os.path.exists(path):
            return None
        content = np.fromfile(path, np.uint8)
        content, trailer = content[:-8], content[-8:].tobytes()
        if trailer[:4] != to_bytes(self.embeddings_checksum()):
            return None
        if trailer[4:] != to_bytes(zlib.crc32(content)):
            logger.warning('%s is damaged and is created again', path)
            return None
        return faiss.deserialize_index(content)

    def embeddings_checksum(self):
        """Return the checksum of all embeddings and entries of the index, in order."""
        return zlib.crc32(np.array(self.checksums(), '<u4').tobytes())

    def checksums(self):
        return self.with_embedding([entry[4] for entry in self.entries])

    def format_matches(self, scores, rows, top):
        """Convert [Q, K] scores and rows to ``[[(path, score)]]``, without deleted images."""
        highest = float(abs(scores).max()) if scores.numel() else 0.0
        if not highest <= MAX_SIMILARITY:
            raise UserError(f'{self.entries_path}: a similarity is {highest:.1e}, and the largest possible one is 1: '
                            'the embeddings are damaged; remove the index, and the photos are embedded again')
        return [[(os.path.join(self.folder, self.rows[row]), score)
                 for row, score in zip(query_rows, query_scores) if row in self.rows][:top]
                for query_rows, query_scores in zip(rows.tolist(), scores.tolist())]


def list_images(folder, index_dir):
    """Find the images below a folder, except those in the index's folder.

    Returns:
        ``{path below the folder: (size, time in ns)}``, and sentences on skipped files.
    """
    files, excluded = {}, os.path.join(index_dir, '')
    paths, skipped = find_images(folder)
    skipped.others = [path for path in skipped.others if not path.startswith(excluded)]
    for path in sorted(paths):
        if not path.startswith(excluded):
            with contextlib.suppress(OSError):              # the file was just deleted, or is a broken link
                status = os.stat(path)
                files[path[len(folder):].lstrip(os.sep)] = status.st_size, status.st_mtime_ns
    return files, skipped.summary()


def try_read(read, path):
    """Return ``(content, None)`` of a file, or ``(None, error)``."""
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


class EmbeddingFile:
    """The embeddings of an index on disk. A slice reads a float32 array [N, width].

    Attributes:
        count: the number of embeddings; the index may lower it.
        stamp: the size and time of the file when its checksums were computed.
    """

    def __init__(self, path, width):
        self.path, self.width, self.count, self.reader = path, width, 0, None
        try:
            self.reader = RandomReader(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror}') from None
        self.count, self.stamp = self.reader.status().st_size // (4 * width), self.current_stamp()

    def __len__(self):
        return self.count

    def __getitem__(self, rows):
        start, stop, step = rows.indices(self.count)
        if step != 1:
            return np.concatenate([self[row:row + 1] for row in range(start, stop, step)])
        block = np.empty((stop - start, self.width), np.float32)
        if block.size and self.reader.read_into(block, start * 4 * self.width) < block.nbytes:
            raise UserError(f'another program cut {self.path}: start this one again, and the lost photos are embedded '
                            'again')
        return block

    def checksums(self, seeds):
        """Compute the CRC-32 of the first embeddings, each started from its seed."""
        checksums, size = [], 4 * self.width
        self.stamp = self.current_stamp() if self.reader else None
        for start in range(0, len(seeds), READ_BLOCK):
            block = memoryview(self[start:start + READ_BLOCK]).cast('B')
            checksums += [zlib.crc32(block[index * size:(index + 1) * size], seed)
                          for index, seed in enumerate(seeds[start:start + READ_BLOCK])]
        return checksums

    def has_changed(self):
        """Whether a program has written into the file since :meth:`checksums` read it."""
        return self.count > 0 and self.stamp != self.current_stamp()

    def current_stamp(self):
        status = self.reader.status()
        return status.st_size, status.st_mtime_ns


def to_bytes(checksum):
    return np.array(checksum, '<u4').tobytes()


def format_entry(content, embedding):
    """Format the line of an image, as bytes.

    Args:
        content: ``[path, size, time, error]``.
        embedding: the image's embedding; ``b''`` if it cannot be read.
    """
    text = json.dumps(content)[:-1].encode()
    return b'%s, %d]\n' % (text, zlib.crc32(embedding, zlib.crc32(text)))


def format_header(content):
    """Format the first line of an index, as bytes."""
    return json.dumps({**content, 'crc32': zlib.crc32(json.dumps(content).encode())}).encode() + b'\n'


def read_lines(path):
    """Read the lines of an index. An incomplete last line is ignored.

    Returns:
        ``(header, lines as bytes, entries)``, where an entry is ``[path, size, time, error, checksum]``;
        ``({}, [], [])`` without an index.

    Raises:
        UserError: the file is damaged, or it is not an index.
    """
    check_regular_file(path)
    damaged = UserError(f'{path} is damaged: remove it, and the photos are embedded again')
    try:
        with open(path, 'rb') as file:
            first, *raw_lines = file.read().split(b'\n')[:-1] or [b'{}']
        header, entries = parse_json(first), parse_json(b'[' + b','.join(raw_lines) + b']')
    except (FileNotFoundError, NotADirectoryError):
        return {}, [], []
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except ValueError:
        raise damaged from None
    is_index = isinstance(header, dict) and all(isinstance(entry, list) and len(entry) in (4, 5) for entry in entries)
    if not is_index:
        raise UserError(f'{path} is not an index of photos: remove it, and the photos are embedded again')
    if header and 'crc32' not in header:
        logger.warning('%s has no checksums, because an older version wrote it: the photos are embedded again', path)
        return {}, [], []
    content = {name: value for name, value in header.items() if name != 'crc32'}
    if header and format_header(content) != first + b'\n':
        raise damaged
    if not all(len(entry) == 5 for entry in entries):
        raise damaged
    return header, [first, *raw_lines], entries


def flush_to_disk(file):
    file.flush()
    os.fsync(file.fileno())
