"""Fields of a protobuf message, as SentencePiece's .model files need them. A field is a tag (its
number and the kind of its value) and a value. See protobuf.dev, "Encoding"."""

import struct

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # kinds of values (wire types)


def read_fields(message):
    """[(number, value), ...] of a message: varints as int, all other values as bytes.

    ValueError or IndexError if the message is malformed.
    """
    fields, position = [], 0

    def read_varint():
        nonlocal position
        value = 0
        for shift in range(0, 70, 7):  # 7 bits per byte, lowest first; top bit: more follow
            byte = message[position]
            value, position = value | (byte & 127) << shift, position + 1
            if byte < 128:
                return value
        raise ValueError(f"a number of more than 64 bits at byte {position}")

    while position < len(message):
        number, kind = divmod(read_varint(), 8)
        if kind == VARINT:
            fields.append((number, read_varint()))
            continue
        sizes = {EIGHT_BYTES: 8, FOUR_BYTES: 4}  # of an unknown kind: too large, so an error
        size = read_varint() if kind == BYTES else sizes.get(kind, len(message))
        if position + size > len(message):
            raise ValueError(f"it ends in the middle of field {number}")
        fields.append((number, message[position:position + size]))
        position += size
    return fields


def encode_field(number, value):
    """The bytes of a field whose value is a whole number, a four-byte float or bytes."""
    if isinstance(value, bytes):
        return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value
    if isinstance(value, float):
        return encode_varint(number << 3 | FOUR_BYTES) + struct.pack("<f", value)
    return encode_varint(number << 3 | VARINT) + encode_varint(value)


def encode_fields(fields):
    """{number: value, ...} -> the bytes of a message."""
    return b"".join(encode_field(number, value) for number, value in fields.items())


def encode_varint(number):
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
