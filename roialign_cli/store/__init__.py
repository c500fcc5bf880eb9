"""The feature file: laid out whole before the first image, filled by positioned writes, read by memory mapping."""

from roialign_cli.store.reader import FeatureFile
from roialign_cli.store.regions import Regions

__all__ = ["FeatureFile", "Regions"]
