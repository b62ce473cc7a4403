"""Paths in messages."""
import ntpath
import os

from datasets.table import relative_image_path
from utils.paths import relative_path


def test_a_path_on_another_drive_of_windows_is_absolute(monkeypatch):
    monkeypatch.setattr(os, 'path', ntpath)
    assert relative_path('C:\\runs\\a', 'C:\\runs') == 'a'
    assert relative_path('D:\\photos\\a.jpg', 'C:\\runs') == 'D:\\photos\\a.jpg'
    assert relative_image_path('D:\\photos\\a.jpg', 'C:\\runs') in ('D:\\photos\\a.jpg', 'D:/photos/a.jpg')
