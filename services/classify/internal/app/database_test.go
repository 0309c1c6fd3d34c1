package app

import "testing"

var databaseSamples = []sample{
	{label: "mysql", port: 3306, says: []string{"<\x4a\x00\x00\x00\x0a8.0.36\x00" + l32(9) + "abcdefgh\x00" + x(40)}},
	{label: "mysql", port: 3306, says: []string{"<\x45\x00\x00\x00\xff\x6a\x04Host 'a' is not allowed to connect to this MySQL server" + x(10)}},
	{label: "postgresql", port: 5432, says: []string{">" + u32(8) + u32(80877103)}},
	{label: "postgresql", port: 5432, says: []string{">" + u32(23) + u32(196608) + "user\x00bob\x00db\x00a\x00\x00"}},
	{label: "postgresql", port: 5432, says: []string{"<R" + u32(12) + u32(5) + "salt"}},
	{label: "mssql", port: 1433, says: []string{">\x12\x01\x00\x1a\x00\x00\x00\x00\x00\x00\x0b\x00\x06\xff" + z(12)}},
	{label: "oracle", port: 1521, says: []string{">" + u16(70) + z(2) + "\x01\x00" + z(2) + u16(319) + u16(300) + z(14) + u16(58) + z(8) + x(34)}},
	{label: "drda", port: 50000, says: []string{">" + u16(20) + "\xd0\x41" + u16(1) + u16(14) + "\x10\x41" + x(10)}},
	{label: "mongodb", port: 27017, says: []string{">" + l32(60) + l32(1) + l32(0) + l32(2013) + l32(0) + "\x00" + x(39)}},
	{label: "cassandra", port: 9042, says: []string{">\x04\x00\x00\x00\x05\x00\x00\x00\x00"}},
	{label: "cassandra", port: 9042, says: []string{">\x04\x00\x00\x00\x01\x00\x00\x00\x16\x00\x01\x00\x0bCQL_VERSION\x00\x053.0.0"}},
	{label: "cassandra", port: 7000, says: []string{">\xca\x55\x2d\xfa\x0c\x0a"}},
}

func FuzzDatabase(f *testing.F) { fuzzSamples(f, databaseSamples) }
