package rpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// codec is gRPC's own for protobuf, but for the bytes fields of what a server receives: they lie in the message's one buffer and
// are not copied out of it, which is most of what a batch of columns costs to decode. Whoever keeps such a field keeps the whole
// message; who keeps parts for long copies them.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("decode a %T: it is no protobuf message", v)
	}
	return Unmarshal(data.Materialize(), m)
}

// Unmarshal is proto.Unmarshal, but bytes fields lie in b, which belongs to the message from then on.
func Unmarshal(b []byte, m proto.Message) error {
	proto.Reset(m)
	return merge(b, m.ProtoReflect(), 0)
}

// inPlace is how deep messages in messages are looked into for bytes fields; proto.Unmarshal takes deeper ones.
const inPlace = 4

// merge sets the bytes fields of m and of its messages and leaves all else to proto.Unmarshal.
func merge(b []byte, m protoreflect.Message, depth int) error {
	var rest []byte
	for fields := m.Descriptor().Fields(); len(b) > 0; {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if size < 0 {
			return protowire.ParseError(size)
		}
		field := b[:tag+size]
		b = b[tag+size:]
		f := fields.ByNumber(number)
		if f == nil || kind != protowire.BytesType || f.Cardinality() == protoreflect.Repeated {
			rest = append(rest, field...)
			continue
		}
		value, _ := protowire.ConsumeBytes(field[tag:])
		switch {
		case f.Kind() == protoreflect.BytesKind:
			m.Set(f, protoreflect.ValueOfBytes(value[:len(value):len(value)]))
		case f.Kind() == protoreflect.MessageKind && depth < inPlace:
			if err := merge(value, m.Mutable(f).Message(), depth+1); err != nil {
				return err
			}
		default:
			rest = append(rest, field...)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(rest, m.Interface())
}
