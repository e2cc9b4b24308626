"""The part of the protobuf format that a SentencePiece .model file needs: read and write fields.

A message is a row of fields. A field is a tag (its number and a wire type: 0 a whole number, 1 and
5 eight and four bytes, 2 bytes of a given length) and a value. See protobuf.dev, "Encoding".
"""


import struct


def read_fields(message):
    """[(number, value), ...] of a message: whole numbers as int, everything else as bytes.

    ValueError or IndexError if the message is malformed.
    """
    fields, place = [], 0
    while place < len(message):
        tag, place = read_varint(message, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = read_varint(message, place)
        else:
            if wire == 2:
                length, place = read_varint(message, place)
            else:
                length = {1: 8, 5: 4}.get(wire, len(message))
            if place + length > len(message):
                raise ValueError(f"it ends in the middle of field {number}")
            value, place = message[place:place + length], place + length
        fields.append((number, value))
    return fields


def read_varint(message, place):
    """(number, place after it): 7 bits a byte, the lowest first; the top bit says more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError(f"a number of more than 64 bits at byte {place}")


def varint(number):
    coded = bytearray()
    while number > 127:
        coded.append(number & 127 | 128)
        number >>= 7
    return bytes([*coded, number])


def int_field(number, value):
    return varint(number << 3) + varint(value)


def bytes_field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def float_field(number, value):
    return varint(number << 3 | 5) + struct.pack("<f", value)
