"""A conversation: turns of a user and of the model, in one sequence of tokens.

For each reply the chat template renders the whole conversation, which becomes ids. They begin with
those of the turns before, which are in the key-value cache: the engine computes only the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from itertools import count

from storyllamas.chat.renderer import Renderer
from storyllamas.chat.template import Message
from storyllamas.engine.engine import Engine
from storyllamas.engine.options import DEFAULTS
from storyllamas.engine.sequence import CachedSequence
from storyllamas.errors import UserError

ROLES = ("unk", "bos", "eos", "pad")
PROBE = "storyllamas"
"""A reply whose end in a rendered conversation shows how a turn ends."""


def special_tokens(engine: Engine) -> dict[str, str]:
    """Return the names and texts of the special tokens that a template may use."""
    ids = {f"{role}_token": engine.info[f"{role}_id"] for role in ROLES}
    return {name: engine.tokenizer.token_text(id_) for name, id_ in ids.items() if id_ >= 0}


class Conversation:
    """A conversation with a model.

    Attributes:
        messages: the turns so far, each with a role and a content, the system message first.
        stop: why the last reply ended, as `CachedSequence.stop`.
        reused: the tokens of the last prompt that were in the key-value cache already.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        *,
        system: str | None = None,
        note: Callable[[str], None] = lambda text: None,
        **options: float | None,
    ) -> None:
        """Begin a conversation.

        Args:
            engine: the model.
            renderer: its chat template.
            system: the system message; None: that of the template, if it has one.
            note: is called with a sentence for the user when old turns are dropped, or if the
                template leaves out the system message.
            **options: as for `Engine.generate`. max_tokens is of one reply; None: as many as it
                takes. The seed is that of the first reply; each further reply has the next one.

        Raises:
            UserError: an option is out of its range.
        """
        self._engine = engine
        self._renderer = renderer
        self._note = note
        self._options = options
        self._sequence = CachedSequence(engine)
        self._sequence.check_options(**options)
        self._turns = count()
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
            self._note_without_effect()
        self._first = len(self.messages)
        self._end_ids = {engine.eos_id, *engine.extra_eos_ids, *self._turn_end_ids()}

    @property
    def stop(self) -> str:
        """Why the last reply ended."""
        return self._sequence.stop

    @property
    def reused(self) -> int:
        """The tokens of the last prompt that were in the cache."""
        return self._sequence.reused

    def reply(self, text: str) -> Generator[str, None, None]:
        """Add a turn of the user, and generate the reply piece by piece.

        A reply that is closed early stays in the conversation as far as it goes. A turn without any
        reply, since it was interrupted or is an error, is taken back.

        Raises:
            UserError: the template rejects the conversation, or the text is longer than the context
                has room for.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        is_complete = False
        try:
            options = self._options_of_turn()
            prompt = self._prompt(int(options["max_tokens"] or 0))
            for piece in self._sequence.generate(prompt, self._end_ids, **options):
                pieces.append(piece)
                yield piece
            is_complete = True
        finally:
            if is_complete or pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.messages = before

    def _note_without_effect(self) -> None:
        """Say so if the template leaves out the system message."""
        turn: Message = {"role": "user", "content": PROBE}
        with suppress(UserError):  # which the first reply raises again
            with_system, without = (
                self._renderer.render([*before, turn], True) for before in (self.messages, [])
            )
            if with_system == without:
                self._note("the chat template has no place for a system message: it has no effect")

    def _options_of_turn(self) -> dict[str, float | None]:
        seed = self._options.get("seed")
        first = DEFAULTS["seed"] if seed is None else seed
        max_tokens = self._options.get("max_tokens") or self._engine.context
        chosen = {"seed": (first + next(self._turns)) % 2**64, "max_tokens": max_tokens}
        return self._options | chosen

    def _prompt(self, max_tokens: int) -> list[int]:
        """Return the ids of the conversation, after dropping old turns if the context is full.

        There is room for the reply if it has max_tokens tokens or a quarter of the context. If not,
        so many turns go that half of the context is free: the next turns need not drop any then.
        """
        context = self._engine.context
        ids = self._encode(self.messages)
        if len(ids) + min(max_tokens, context // 4) > context:
            dropped = 0
            while len(ids) > context // 2 and len(self.messages) > self._first + 1:
                del self.messages[self._first : self._first + 2]
                dropped += 1
                ids = self._encode(self.messages)
            if dropped:
                turns = "turn is" if dropped == 1 else f"{dropped} turns are"
                self._note(
                    f"the context of {context} tokens is full: the oldest {turns} dropped, so the "
                    "model no longer knows what was said there"
                )
        if len(ids) >= context:
            system = self.messages[0]["content"] if self._first else ""
            is_system = len(self._engine.encode(system)) > len(ids) // 2
            which = "the system message" if is_system else "your message"
            raise UserError(
                f"{which} makes a prompt of {len(ids)} tokens, and the model's context is "
                f"{context}: write a shorter one"
            )
        return self._with_cached(ids)

    def _encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        text = self._renderer.render(messages, add_generation_prompt)
        return self._engine.tokenizer.encode(text, special=True)

    def _with_cached(self, ids: list[int]) -> list[int]:
        """Return ids with the tokens that the model generated in place of others of the same text.

        The model may spell a word with other tokens than the tokenizer does. So a stretch of ids up
        to the end of a turn counts as equal to a stretch in the cache if both have the same text.
        """
        cached = self._sequence.ids
        i = j = 0
        while i < len(cached) and j < len(ids):
            if cached[i] == ids[j]:
                i, j = i + 1, j + 1
                continue
            i_end, j_end = self._turn_end(cached, i), self._turn_end(ids, j)
            if self._engine.decode(cached[:i_end]) != self._engine.decode(ids[:j_end]):
                break
            i, j = i_end, j_end
        return cached[:i] + ids[j:]

    def _turn_end(self, ids: Sequence[int], start: int) -> int:
        ends = (index for index in range(start, len(ids)) if ids[index] in self._end_ids)
        return next(ends, len(ids))

    def _turn_end_ids(self) -> list[int]:
        """Return the token with which the template ends a reply, if it is a special one.

        Some files do not name it among the tokens that end a text.
        """
        turn = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        try:
            text = self._renderer.render([*self.messages, *turn], False)
        except UserError:
            return []  # the first reply will say why
        rest = text.rpartition(PROBE)[2].lstrip()
        tokenizer = self._engine.tokenizer
        for id_ in tokenizer.encode(rest, special=True)[:2]:  # the first may be a space in front
            token = tokenizer.token_text(id_)
            if rest.startswith(token) and token.startswith("<") and token.endswith(">"):
                return [id_]
        return []
