"""Synthesis of the demo corpus: ten classes of sound that differ in the order of events in time.

The classes come in five pairs. Both classes of a pair draw from one source; the second is the first played backwards,
*before* the room and the noise are added. What a pair's clips contain is thus the same by construction, and a model that
ignores order cannot separate the two, except by the reverberation after every event. Phrases repeat within a clip and keep
clear of its ends, so no class depends on where in the clip a sound begins.

Conventions: a waveform is (sample,) in [-1, 1], times are in seconds, frequencies in Hz and levels
in dB. All randomness of a clip follows from `seed`, its id and its group: clips can be made in any
order, in any process, and a longer corpus begins every class with the clips of a shorter one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from pipeline.seeding import named_generator

NUM_FOLDS = 5

# Phrases are defined for a clip of this length: a shorter clip has faster phrases, a longer one more of them.
_REFERENCE_DURATION = 2.0  # s

_Waveform = NDArray[np.float64]


class DemoClip(NamedTuple):
    """One clip of the demo corpus; clips of one group share a voice and a room."""

    clip_id: str
    class_index: int
    fold: int  # 1 to NUM_FOLDS
    group: str


class _Clock(NamedTuple):
    """The time axis of one clip."""

    num_samples: int
    sample_rate: int  # Hz
    pace: float  # factor on every length of the reference clip, at most 1

    @property
    def duration(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def times(self) -> _Waveform:
        return np.arange(self.num_samples) / self.sample_rate


class _Voice(NamedTuple):
    """Timbre shared by the sources of one group."""

    register: float  # Hz, the lowest pitch
    rolloff: float  # harmonic h has amplitude h ** -rolloff
    even_harmonics: float  # amplitude factor of the even harmonics: 0 is hollow, 1 is bright
    hiss_centre: float  # Hz
    hiss_width: float  # octaves, standard deviation on a log-frequency axis


class _Room(NamedTuple):
    """Simulated recording conditions of a group."""

    decay_time: float  # s, until the reverberation is 60 dB down
    reverberation: float  # energy of the tail relative to the direct sound, as an amplitude factor
    noise_slope: float  # exponent a of a background with power f ** -a: 0 is white, 2 is brown


def demo_clips(clips_per_class: int, seed: int) -> list[DemoClip]:
    """List the corpus, class after class; clip k of a class is in fold 1 + k % NUM_FOLDS.

    Groups of two to four clips are drawn within one class and fold, so no group straddles folds.
    """
    clips = []
    for class_index, class_name in enumerate(CLASSES):
        groups = [
            _group_sequence(class_name, fold, math.ceil(clips_per_class / NUM_FOLDS), seed)
            for fold in range(1, NUM_FOLDS + 1)
        ]
        for k in range(clips_per_class):
            group = groups[k % NUM_FOLDS][k // NUM_FOLDS]
            clips.append(DemoClip(f"{class_name}-{k:03d}", class_index, 1 + k % NUM_FOLDS, group))
    return clips


def synthesise(
    clip: DemoClip,
    *,
    duration: float,
    sample_rate: int,
    seed: int,
) -> NDArray[np.float32]:
    """Return the clip with reverberation and noise: float32 (sample,) in [-1, 1]."""
    clock = _clock(duration, sample_rate)
    room = _draw_room(named_generator(seed, "room", clip.group))
    dry = dry_waveform(clip, duration=duration, sample_rate=sample_rate, seed=seed)

    generator = named_generator(seed, "recording", clip.clip_id)
    wet = _reverberate(generator, dry, room, clock)
    wet /= _loudness(wet)
    noise = _coloured_noise(generator, room.noise_slope + generator.uniform(-0.2, 0.2), clock)
    noise_level = -generator.uniform(12.0, 26.0)
    bystander_level = -generator.uniform(8.0, 20.0)
    bystander = _bystander(generator, clock)
    mixture = wet + _amplitude(noise_level) * noise + _amplitude(bystander_level) * bystander
    peak_level = generator.uniform(-8.0, -0.5)
    gain = _amplitude(peak_level) / np.abs(mixture).max()
    waveform: NDArray[np.float32] = (gain * mixture).astype(np.float32)
    return waveform


def dry_waveform(clip: DemoClip, *, duration: float, sample_rate: int, seed: int) -> _Waveform:
    """Return the clip without room, noise and level: float64 (sample,), silent between events."""
    source = _PAIRS[clip.class_index // 2].source
    voice = _draw_voice(named_generator(seed, "voice", clip.group), sample_rate)
    generator = named_generator(seed, "source", clip.clip_id)
    dry = source(generator, voice, _clock(duration, sample_rate))
    return dry[::-1].copy() if clip.class_index % 2 else dry


# --- the five sources, each as the first class of its pair -------------------------------------


def _sweeps(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Tones that glide upwards by one to two octaves."""
    pitch = voice.register * 2 ** generator.uniform(0.0, 0.7)
    octaves = generator.uniform(0.7, 1.6)
    curvature = 2 ** generator.uniform(-0.7, 0.7)
    frequency = np.full(clock.num_samples, pitch)
    envelope = np.zeros(clock.num_samples)
    for onset, length in _phrases(generator, clock, shortest=0.3, longest=0.55):
        progress = np.clip((clock.times - onset) / length, 0.0, 1.0)
        inside = (progress > 0.0) & (progress < 1.0)
        frequency[inside] = pitch * 2 ** (octaves * progress[inside] ** curvature)
        envelope += _event(clock, onset, length, 0.02)
    return envelope * _tone(voice, frequency, clock)


def _clicks(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Trains of pulses that follow each other ever faster and fainter, as of a dropped ball."""
    pulse_length = generator.uniform(0.015, 0.028) * clock.pace
    frequency = np.full(clock.num_samples, voice.register * 2 ** generator.uniform(2.0, 2.7))
    num_pulses = int(generator.integers(9, 14))
    # The last interval is a quarter to an eighth of the first.
    shrinkage = generator.uniform(4.0, 8.0) ** (-1.0 / (num_pulses - 2))
    lengths = np.full(num_pulses, pulse_length)
    intervals = shrinkage ** np.arange(num_pulses - 1)
    positions = np.concatenate(([0.0], np.cumsum(intervals) / intervals.sum()))
    heights = 10 ** (np.linspace(0.0, -generator.uniform(18.0, 28.0), num_pulses) / 20)
    envelope = np.zeros(clock.num_samples)
    for onset, length in _phrases(generator, clock, shortest=0.45, longest=0.65):
        onsets = onset + positions * (length - pulse_length)
        envelope += _gate(clock, onsets, lengths, 0.5 * pulse_length, heights)
    breath = generator.uniform(0.2, 0.6)
    tone = _tone(voice, frequency, clock)
    return envelope * ((1 - breath) * tone + breath * _hiss(generator, voice, clock))


def _calls(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Whistle calls of two notes, a short low one and a long high one."""
    low = voice.register * 2 ** generator.uniform(0.0, 0.5)
    # Low and high keep to their own bands in every clip: with overlapping ones, a network trained
    # for seconds on 320 clips stayed at chance between the two classes.
    high = voice.register * 2 ** generator.uniform(2.0, 2.6)
    short = generator.uniform(0.2, 0.35)  # of a phrase; the remainder is the long note
    rest = generator.uniform(0.02, 0.1)
    frequency = np.full(clock.num_samples, low)
    envelope = np.zeros(clock.num_samples)
    for onset, length in _phrases(generator, clock, shortest=0.3, longest=0.5, pause=0.18):
        high_onset = onset + (short + rest) * length
        late = (clock.times > high_onset - 0.5 * rest * length) & (clock.times < onset + length)
        frequency[late] = high
        onsets = np.array([onset, high_onset])
        lengths = length * np.array([short, 1 - short - rest])
        envelope += _gate(clock, onsets, lengths, 0.015)
    # A whistle: the harmonics of the low note would cover the high one.
    return envelope * _tone(voice._replace(rolloff=voice.rolloff + 1.5), frequency, clock)


def _hums(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Tones that turn into hiss."""
    frequency = np.full(clock.num_samples, voice.register * 2 ** generator.uniform(-0.6, 0.2))
    turn = generator.uniform(0.35, 0.65)  # of a phrase
    hum_envelope = np.zeros(clock.num_samples)
    hiss_envelope = np.zeros(clock.num_samples)
    for onset, length in _phrases(generator, clock, shortest=0.3, longest=0.5):
        hum_length = turn * length
        hum_envelope += _event(clock, onset, hum_length, 0.02)
        hiss_envelope += _event(clock, onset + hum_length, length - hum_length, 0.02)
    balance = _amplitude(generator.uniform(-6.0, 6.0))
    hum = hum_envelope * _tone(voice, frequency, clock)
    return hum + balance * hiss_envelope * _hiss(generator, voice, clock)


def _swells(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Noise that grows out of silence and breaks off."""
    rise = generator.uniform(14.0, 28.0)  # dB
    envelope = np.zeros(clock.num_samples)
    for onset, length in _phrases(generator, clock, shortest=0.35, longest=0.55):
        progress = np.clip((clock.times - onset) / length, 0.0, 1.0)
        gate = _event(clock, onset, length, 0.015)
        envelope += gate * 10 ** (rise * (progress - 1.0) / 20)
    # An octave below the hiss of the other sources.
    deep = voice._replace(hiss_centre=0.5 * voice.hiss_centre)
    return envelope * _hiss(generator, deep, clock)


class _Pair(NamedTuple):
    """Two classes that are time reversals of each other."""

    forwards: str
    backwards: str
    source: Callable[[np.random.Generator, _Voice, _Clock], _Waveform]


_PAIRS = (
    _Pair("rising_sweep", "falling_sweep", _sweeps),
    _Pair("accelerating_clicks", "slowing_clicks", _clicks),
    _Pair("low_high_call", "high_low_call", _calls),
    _Pair("hum_then_hiss", "hiss_then_hum", _hums),
    _Pair("swelling_noise", "fading_noise", _swells),
)

CLASSES: tuple[str, ...] = sum(((pair.forwards, pair.backwards) for pair in _PAIRS), ())


# --- what the sources are made of --------------------------------------------------------------


def _phrases(
    generator: np.random.Generator,
    clock: _Clock,
    *,
    shortest: float,
    longest: float,
    pause: float = 0.12,
) -> list[tuple[float, float]]:
    """Lay out equal phrases with pauses between them: a list of (onset, length) in seconds.

    `shortest`, `longest` and `pause` (the least) are lengths in the reference clip.
    """
    length = generator.uniform(shortest, longest) * clock.pace
    gap = generator.uniform(1.0, 1.8) * pause * clock.pace
    # Half a pause stays free at each end: a clip rolled in time is a clip of the same class.
    room = clock.duration - gap
    most = max(1, math.floor((room + gap) / (length + gap)))
    num_phrases = int(generator.integers(max(1, most - 1), most + 1))
    slack = room - num_phrases * (length + gap) + gap
    start = 0.5 * gap + generator.uniform(0.0, 1.0) * max(0.0, slack)
    return [(start + i * (length + gap), length) for i in range(num_phrases)]


def _event(clock: _Clock, onset: float, length: float, ramp: float) -> _Waveform:
    return _gate(clock, np.array([onset]), np.array([length]), ramp)


def _gate(
    clock: _Clock,
    onsets: _Waveform,
    lengths: _Waveform,
    ramp: float,
    heights: _Waveform | float = 1.0,
) -> _Waveform:
    """Return an envelope (sample,) with a raised-cosine gate per event.

    Onsets and lengths, in seconds, are (event,); heights are (event,) or one for all. Both flanks
    are the same raised cosine of `ramp` seconds, so that an event is symmetric in time.
    """
    envelope = np.zeros(clock.num_samples)
    heights = np.broadcast_to(heights, onsets.shape)
    for onset, length, height in zip(onsets, lengths, heights, strict=True):
        first = max(0, math.ceil(onset * clock.sample_rate))
        last = min(clock.num_samples, math.floor((onset + length) * clock.sample_rate) + 1)
        times = np.arange(first, last) / clock.sample_rate - onset
        flank = np.clip(np.minimum(times, length - times) / min(ramp, 0.5 * length), 0.0, 1.0)
        envelope[first:last] += height * (0.5 - 0.5 * np.cos(np.pi * flank))
    return envelope


def _tone(voice: _Voice, frequency: _Waveform, clock: _Clock) -> _Waveform:
    """Return a harmonic tone (sample,) of unit power whose pitch follows `frequency` (sample,)."""
    phase = 2 * np.pi * np.cumsum(frequency) / clock.sample_rate
    ceiling = 0.45 * clock.sample_rate
    tone = np.zeros(clock.num_samples)
    power = 0.0
    for harmonic in range(1, 9):
        amplitude = harmonic**-voice.rolloff * (1.0 if harmonic % 2 else voice.even_harmonics)
        # Harmonics fade out below the Nyquist frequency, to avoid aliasing of sweeps.
        audible = np.clip((ceiling - harmonic * frequency) / (0.1 * ceiling), 0.0, 1.0)
        if audible.any():
            tone += amplitude * audible * np.sin(harmonic * phase)
            power += 0.5 * amplitude**2
    return tone / math.sqrt(power)


def _hiss(generator: np.random.Generator, voice: _Voice, clock: _Clock) -> _Waveform:
    """Return noise (sample,) of unit power in the voice's band, a bell over log frequency."""
    frequencies = np.fft.rfftfreq(clock.num_samples, 1 / clock.sample_rate)
    octaves = np.log2(np.maximum(frequencies, 1.0) / voice.hiss_centre)
    return _shaped_noise(generator, np.exp(-0.5 * (octaves / voice.hiss_width) ** 2), clock)


def _coloured_noise(generator: np.random.Generator, slope: float, clock: _Clock) -> _Waveform:
    """Return noise (sample,) of unit power with power density f ** -slope above 50 Hz."""
    frequencies = np.fft.rfftfreq(clock.num_samples, 1 / clock.sample_rate)
    return _shaped_noise(generator, np.maximum(frequencies, 50.0) ** (-0.5 * slope), clock)


def _shaped_noise(generator: np.random.Generator, response: _Waveform, clock: _Clock) -> _Waveform:
    """Return Gaussian noise (sample,) of unit power filtered by an amplitude `response` (bin,)."""
    spectrum = np.fft.rfft(generator.standard_normal(clock.num_samples))
    noise = np.fft.irfft(spectrum * response, clock.num_samples)
    return noise / math.sqrt(np.mean(noise**2))


# --- the recording -----------------------------------------------------------------------------


def _reverberate(
    generator: np.random.Generator,
    dry: _Waveform,
    room: _Room,
    clock: _Clock,
) -> _Waveform:
    """Add the room's tail to a dry waveform; both (sample,)."""
    delay = round(generator.uniform(0.002, 0.015) * clock.sample_rate)
    times = np.arange(round(room.decay_time * clock.sample_rate)) / clock.sample_rate
    tail = generator.standard_normal(times.size) * 10 ** (-3.0 * times / room.decay_time)
    tail *= room.reverberation / math.sqrt(np.sum(tail**2))
    response = np.concatenate(([1.0], np.zeros(delay), tail))
    wet: _Waveform = fftconvolve(dry, response)[: clock.num_samples]
    return wet


def _bystander(generator: np.random.Generator, clock: _Clock) -> _Waveform:
    """Return one short foreign sound, tonal or noisy, at a random time, or silence: (sample,)."""
    if generator.random() < 0.5:
        return np.zeros(clock.num_samples)
    voice = _draw_voice(generator, clock.sample_rate)
    length = generator.uniform(0.03, 0.25) * clock.pace
    gate = _event(clock, generator.uniform(0.0, clock.duration - length), length, 0.01)
    if generator.random() < 0.5:
        return gate * _hiss(generator, voice, clock)
    pitch = voice.register * 2 ** generator.uniform(0.0, 2.0)
    return gate * _tone(voice, np.full(clock.num_samples, pitch), clock)


def _loudness(waveform: _Waveform) -> float:
    """Return the root mean square of the loudest tenth of the samples.

    The plain RMS of a train of clicks is mostly that of its silences; a noise level derived from it would be far lower than
    for a sweep of the same strength.
    """
    power = waveform**2
    num_loud = max(1, power.size // 10)
    return math.sqrt(float(np.partition(power, -num_loud)[-num_loud:].mean()))


def _amplitude(level: float) -> float:
    return float(10 ** (level / 20))


# --- draws -------------------------------------------------------------------------------------


def _draw_voice(generator: np.random.Generator, sample_rate: int) -> _Voice:
    # The bounds matter only below 16 kHz, where they keep a voice under the Nyquist frequency.
    register = min(generator.uniform(250.0, 400.0), sample_rate / 20)
    return _Voice(
        register=register,
        rolloff=generator.uniform(0.6, 2.0),
        even_harmonics=generator.uniform(0.1, 1.0),
        hiss_centre=min(2000.0 * 2 ** generator.uniform(-0.5, 1.0), sample_rate / 4),
        hiss_width=generator.uniform(0.5, 0.9),
    )


def _draw_room(generator: np.random.Generator) -> _Room:
    return _Room(
        decay_time=generator.uniform(0.1, 0.6),
        reverberation=generator.uniform(0.1, 0.7),
        noise_slope=generator.uniform(0.8, 1.2),
    )


def _clock(duration: float, sample_rate: int) -> _Clock:
    pace = min(1.0, duration / _REFERENCE_DURATION)
    return _Clock(round(duration * sample_rate), sample_rate, pace)


def _group_sequence(class_name: str, fold: int, num_clips: int, seed: int) -> list[str]:
    """Return the group of each clip of one class and fold, in order."""
    generator = named_generator(seed, "groups", class_name, fold)
    groups: list[str] = []
    number = 0
    while len(groups) < num_clips:
        groups += [f"{class_name}-{fold}-{number}"] * int(generator.integers(2, 5))
        number += 1
    return groups[:num_clips]
