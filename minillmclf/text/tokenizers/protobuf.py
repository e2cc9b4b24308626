"""Fields of a protobuf message, as much of the format as SentencePiece's .model files need.

A field is a tag (its number and the kind of its value) and a value. See protobuf.dev, "Encoding".
"""

import struct

WHOLE, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


def read_fields(message):
    """[(number, value), ...] of a message: whole numbers as int, everything else as bytes.

    ValueError or IndexError if the message is malformed.
    """
    fields, place = [], 0

    def read_whole():
        nonlocal place
        value = 0
        for shift in range(0, 70, 7):  # 7 bits a byte, the lowest first; the top bit: more follow
            byte = message[place]
            value, place = value | (byte & 127) << shift, place + 1
            if byte < 128:
                return value
        raise ValueError(f"a number of more than 64 bits at byte {place}")

    while place < len(message):
        number, kind = divmod(read_whole(), 8)
        if kind == WHOLE:
            fields.append((number, read_whole()))
            continue
        sizes = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
        size = read_whole() if kind == BYTES else sizes.get(kind, len(message))
        if place + size > len(message):
            raise ValueError(f"it ends in the middle of field {number}")
        fields.append((number, message[place:place + size]))
        place += size
    return fields


def field(number, value):
    """The bytes of a field: a whole number, a float of four bytes, or bytes."""
    if isinstance(value, bytes):
        return whole(number << 3 | BYTES) + whole(len(value)) + value
    if isinstance(value, float):
        return whole(number << 3 | FOUR_BYTES) + struct.pack("<f", value)
    return whole(number << 3 | WHOLE) + whole(value)


def whole(number):
    coded = bytearray()
    while number > 127:
        coded.append(number & 127 | 128)
        number >>= 7
    return bytes([*coded, number])
