"""Images without captions that enlarge the gallery of an evaluation: ``test.py --distractors <folder>``.

Rows of a table can also be images without captions (:mod:`datasets.table`).
"""
from utils.errors import UserError
from utils.images import find_images

DISTRACTOR_PID = -1     # the identity of every distractor, which no caption has


def add_distractors(content, folder):
    """Add the images below a folder to the gallery of a split.

    Args:
        content: ``{'image_pids', 'img_paths', 'caption_pids', 'captions'}`` of the split. It is not changed.
        folder: the folder of the distractors.

    Returns:
        The same with more images, each with :data:`DISTRACTOR_PID`.

    Raises:
        UserError: the folder has no images, or an image of the split is in it.
    """
    paths = sorted(find_images(folder)[0])
    if not paths:
        raise UserError(f'--distractors {folder}: there is no image in or below this folder; name a folder of photos')
    known = set(content['img_paths'])
    repeated = [path for path in paths if path in known]
    if repeated:
        raise UserError(f'--distractors {folder}: {len(repeated)} of its images are in the gallery already, the first '
                        f'of them {repeated[0]}; name a folder without images of the split')
    return {**content, 'image_pids': [*content['image_pids'], *[DISTRACTOR_PID] * len(paths)],
            'img_paths': [*content['img_paths'], *paths]}
