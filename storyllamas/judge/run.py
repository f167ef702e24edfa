"""Ask a judge questions, and keep its answers.

stories = [Story("Once upon a time", ", a cat sat.")]
settings = Settings("a-model")
judge = Judge(Endpoint("http://127.0.0.1:8000/v1"), settings, Answers(default_journal()))
questions = [grading(story, settings.seed) for story in stories]
judge.ask([each for each in questions if judge.answer(each) is None])
grades = [judge.answer(each) for each in questions]
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storyllamas.judge.answers import Answers, digest
from storyllamas.judge.endpoint import Endpoint
from storyllamas.judge.grades import Grades, MalformedError
from storyllamas.judge.questions import Question, Story, comparison, grading

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What decides an answer, but for the question.

    Attributes:
        model: the name of the judge at its endpoint.
        seed: of the first repetition; each further one has the next seed.
        repeats: how often each question is asked.
        temperature: of the answers.
        max_tokens: of an answer.
        body: further fields of a request; a field that is None is left out.
    """

    model: str
    seed: int = 1
    repeats: int = 1
    temperature: float = 0
    max_tokens: int = 500
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """The seeds of the repetitions."""
        return range(self.seed, self.seed + self.repeats)

    def request(self, question: Question[Any]) -> dict[str, Any]:
        """Return the body of the request for a question."""
        fields = {
            "model": self.model,
            "messages": [{"role": "user", "content": question.text}],
            "seed": question.seed,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **self.body,
        }
        return {name: value for name, value in fields.items() if value is not None}


def gradings(stories: Sequence[Story], settings: Settings) -> list[list[Question[Grades]]]:
    """Return the repetitions of the question for the grades of each story."""
    return [[grading(story, seed) for seed in settings.seeds] for story in stories]


def comparisons(
    pairs: Sequence[tuple[Story, Story]], settings: Settings
) -> list[list[tuple[Question[int], Question[int]]]]:
    """Return the questions for the better story of each pair: repetitions of both orders."""
    return [
        [(comparison(one, two, seed), comparison(two, one, seed)) for seed in settings.seeds]
        for one, two in pairs
    ]


class Judge:
    """A judge at an endpoint; its answers are kept."""

    def __init__(self, endpoint: Endpoint, settings: Settings, answers: Answers) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.answers = answers

    def key(self, question: Question[Any]) -> str:
        """Return the key of the answer to a question."""
        return digest(self.endpoint.url, self.settings.request(question))

    def answer(self, question: Question[T]) -> T | None:
        """Return what the kept answer to a question says; None: there is no usable one."""
        kept = self.answers.get(self.key(question))
        try:
            return question.read(kept.text) if kept else None
        except MalformedError:
            return None

    def ask(
        self,
        questions: Sequence[Question[Any]],
        concurrency: int = 1,
        show: Callable[[int], None] = lambda finished: None,
    ) -> list[str]:
        """Ask questions and keep the answers.

        An answer is kept as soon as it arrives, so that nothing is lost if this is interrupted.

        Args:
            questions: without those that have an answer.
            concurrency: the number of questions that are asked at a time.
            show: is called with the number of finished questions after each.

        Returns:
            What is wrong with the last answer to each question that has no usable one.

        Raises:
            UserError: the endpoint rejects a request, or gives no answer after all retries.
        """
        waiting = deque(questions)
        outcomes: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        stopped = threading.Event()
        # Threads of an executor would keep an interrupted process from ending.
        for _ in range(min(concurrency, len(questions))):
            threading.Thread(
                target=self._work, args=(waiting, outcomes, stopped), daemon=True
            ).start()
        unusable = []
        try:
            for finished in range(1, len(questions) + 1):
                outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome:
                    unusable.append(outcome)
                show(finished)
        finally:
            stopped.set()
        return unusable

    def _work(
        self,
        waiting: deque[Question[Any]],
        outcomes: queue.SimpleQueue[str | Exception],
        stopped: threading.Event,
    ) -> None:
        """Ask the waiting questions; put "" for each answer, or why there is none."""
        while not stopped.is_set():
            try:
                question = waiting.popleft()
            except IndexError:
                return
            try:
                body = self.settings.request(question)
                answer = self.endpoint.ask(body, question.read, stopped)
                self.answers.add(self.endpoint.url, body, answer)
                outcomes.put("")
            except MalformedError as error:
                outcomes.put(str(error))
            except Exception as error:  # The thread that waits for the outcomes raises it.
                outcomes.put(error)
                return
