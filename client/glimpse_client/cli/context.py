"""What the commands share: the profile, the client and the console for messages."""

import os
from dataclasses import dataclass, field

import click
from rich.console import Console

from glimpse_client.cli import profiles
from glimpse_client.cli.output import messages
from glimpse_client.client import DEFAULT_URL, Glimpse


@dataclass
class Context:
    """One call of the command line. The client is opened with the first request."""

    profile: str
    url: str | None
    api_key: str | None
    console: Console = field(default_factory=messages)
    running_jobs: list[str] = field(default_factory=list)
    _client: Glimpse | None = None
    _may_have_created: bool = False

    def chosen(self) -> profiles.Profile:
        """Address and key: options, then the environment, then the profile, then this machine."""
        try:
            stored = profiles.load().get(self.profile)
        except profiles.UnreadableProfiles as error:
            raise click.UsageError(str(error)) from None
        if stored is None and self.profile != profiles.DEFAULT:
            raise click.UsageError(f"There is no profile {self.profile!r}. Use glimpse login.")
        url = self.url or os.environ.get("GLIMPSE_URL") or (stored.url if stored else DEFAULT_URL)
        key = self.api_key or os.environ.get("GLIMPSE_API_KEY")
        if not key and stored is not None and stored.url.rstrip("/") == url.rstrip("/"):
            key = stored.api_key  # a key is sent only to the address that it was stored for
        return profiles.Profile(url, key or None)

    @property
    def client(self) -> Glimpse:
        """The client."""
        if self._client is None:
            chosen = self.chosen()
            self._client = Glimpse(chosen.url, api_key=chosen.api_key)
        return self._client

    def close(self) -> None:
        """Close the client if it was opened."""
        if self._client is not None:
            self._client.close()

    def creating_jobs(self) -> None:
        """Note that the service may have a job whose id is not known yet."""
        self._may_have_created = True

    def jobs_created(self, job_id: str) -> None:
        """Note a job, to say how to return to it if the command is interrupted."""
        self.running_jobs.append(job_id)

    def say_running(self) -> None:
        """Say how to return to the jobs that go on without this command."""
        for job_id in self.running_jobs:
            self.say(f"Job {job_id} goes on. To return: glimpse jobs watch {job_id}")
        if self._may_have_created and not self.running_jobs:
            self.say("If the service has a job of this command, glimpse jobs list shows it.")

    def say(self, text: str) -> None:
        """A message on standard error."""
        self.console.print(text, markup=False)


pass_context = click.make_pass_decorator(Context)
