"""The models as this dialect names them: `owner/name`, a version id, a table of inputs."""

import hashlib
import re
from dataclasses import dataclass, field

from fluxserve.core.catalog import Catalog, ModelCard
from fluxserve.core.errors import NotFound
from fluxserve.dialects.replicate.inputs import OWNER, TABLES, Inputs, inputs_of

VERSION = re.compile(r"[0-9a-f]{64}")
# Versions that the service has published; the others are derived from the name.
PUBLISHED = {
    f"{OWNER}/flux-pro": "a57823497a8beebcd222c20dd78af15a90c0415c36a5bfc88ee763c67155310e"
}


@dataclass(frozen=True, slots=True)
class Model:
    """One public model."""

    name: str  # owner/name
    card: ModelCard
    inputs: Inputs
    version: str = field(init=False)  # 64 hex digits, the same for ever
    is_official: bool = field(init=False)  # called by name; what the service calls official

    def __post_init__(self) -> None:
        derived = hashlib.sha256(f"fluxserve {self.name}".encode()).hexdigest()
        object.__setattr__(self, "version", PUBLISHED.get(self.name) or derived)
        object.__setattr__(self, "is_official", self.name.startswith(f"{OWNER}/"))


class Shelf:
    """Every public model of a catalog, by name and by version."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._named: dict[str, Model] = {}
        names = [card.id for card in catalog.cards()]
        names += [name for name in TABLES if name not in names and catalog.find(name)]
        self._models = tuple(self._make(name, catalog.card(name)) for name in names)
        self._by_version = {model.version: model for model in self._models}

    def models(self) -> tuple[Model, ...]:
        return self._models

    def named(self, name: str) -> Model:
        """By `owner/name`, any alias included; NotFound."""
        known = self._named.get(name)
        if known is not None:
            return known
        card = self._catalog.find(name) if name.count("/") == 1 else None
        if card is None:
            raise NotFound("there is no such model")
        key = name.strip().lower()
        found = self._make(key, card)
        if key == name:  # other spellings are without number
            self._named[name] = found
        return found

    def versioned(self, text: str) -> tuple[Model, str | None]:
        """By what `version` may say: a name, name:version or a version; and which version.

        NotFound with field "version".
        """
        name, colon, version = text.strip().rpartition(":")
        if not colon and version.count("/") == 1:
            name, version = version, ""
        version = version.lower()
        found: Model | None = None
        try:
            found = self.named(name) if name else self._by_version.get(version)
        except NotFound:
            found = None
        if found is None or ((colon or version) and version != found.version):
            raise NotFound("there is no such version", field="version")
        return found, version or None

    def _make(self, name: str, card: ModelCard) -> Model:
        shown = next((known for known in card.names if known.lower() == name), card.id)
        if shown.count("/") != 1:
            shown = card.id
        return Model(shown, card, inputs_of(shown, card))
