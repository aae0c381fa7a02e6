"""scikit-learn parameters that reach into settings objects."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Self

from sklearn.base import BaseEstimator

from transfuse.config import Config


class ConfiguredEstimator(BaseEstimator):  # type: ignore[misc]
    """An estimator whose arguments may be `Config`s. Their fields are parameters too, as `training__epochs`, so
    `GridSearchCV` can search them; setting one replaces the (frozen) config by a changed copy."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments and, with `deep`, the fields of those that are configs."""
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            for name, value in list(params.items()):
                if isinstance(value, Config):
                    params |= {f"{name}__{field}": inner for field, inner in value.to_dict().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set arguments, or fields of configs by `argument__field`. Raises ValueError for an unknown name."""
        fields: dict[str, dict[str, Any]] = defaultdict(dict)
        own = super().get_params(deep=False)
        for name, value in params.items():
            argument, _, field = name.partition("__")
            if argument not in own:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(sorted(own))}")
            if field:
                fields[argument][field] = value
            else:
                setattr(self, argument, value)
        for argument, changes in fields.items():
            config = getattr(self, argument)
            if not isinstance(config, Config):
                raise ValueError(f"{argument}={config!r} has no fields")
            unknown = sorted(set(changes) - set(config.to_dict()))
            if unknown:
                raise ValueError(f"{argument} has no field {', '.join(unknown)}")
            setattr(self, argument, config.replace(**changes))
        return self
