"""Estimators behind the scikit-learn contract: one file a task."""
