"""Keys as clients see them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from app.http.timestamps import Timestamp
from core.domain.api_keys import ApiKey
from core.domain.key_tokens import display
from core.domain.principals import Scope


class Key(BaseModel):
    """A key without its secret."""

    id: str = Field(description="The public id, which rotation does not change")
    prefix: str = Field(description="The beginning of the key's text")
    name: str
    tenant: str
    scopes: list[Scope]
    active: bool
    rate_limit: str | None = Field(description="Null: the service's rate limit applies")
    daily_quota: int | None = Field(description="Null: the service's quota applies. 0: no quota")
    created_at: Timestamp
    expires_at: Timestamp | None
    last_used_at: Timestamp | None = Field(description="Accurate to a minute")
    rotated_at: Timestamp | None
    previous_expires_at: Timestamp | None = Field(
        description="Until when the text before the last rotation is valid"
    )
    revoked_at: Timestamp | None

    @classmethod
    def of(cls, key: ApiKey, now: datetime, /, **more: Any) -> Self:
        return cls(
            id=key.id,
            prefix=display(key.id),
            name=key.name,
            tenant=key.tenant,
            scopes=sorted(key.scopes),
            active=key.active(now),
            rate_limit=None if key.rate is None else str(key.rate),
            daily_quota=key.daily_quota,
            created_at=key.created_at,
            expires_at=key.expires_at,
            last_used_at=key.last_used_at,
            rotated_at=key.rotated_at,
            previous_expires_at=key.previous_expires_at,
            revoked_at=key.revoked_at,
            **more,
        )


class IssuedKey(Key):
    """A key with its text, which no later response contains."""

    key: str = Field(description="The text to send as `Authorization: Bearer …`")


class KeyList(BaseModel):
    """The keys of a tenant."""

    keys: list[Key]
