"""Measurements that docs/log.md and the README quote; run from a checkout, not in the wheel."""
