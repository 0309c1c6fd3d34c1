package app

import "testing"

// tencentParts is a message of two numbered parts.
var tencentParts = "\xaa" + u32(10+5+5+6) + "\x15" + in32(x(5)) + "\x25" + in32(x(6))

// stormMessage has both counters.
func stormMessage(sent, got int) string {
	return "idid" + x(10) + "\x40\x00" + u16(sent) + u16(got) + x(20)
}

var gameSamples = []sample{
	{label: "raknet", port: 19132, udp: true, says: []string{">\x01" + z(8) + raknetMagic + z(8)}},
	{label: "steam", port: 27036, udp: true, says: []string{">\xff\xff\xff\xff\x21\x4c\x5f\xa0" + x(8)}},
	{label: "steam", port: 27017, says: []string{">" + l32(40) + "VT01" + x(40)}},
	{label: "steamdatagramrelay", port: 27015, udp: true, says: []string{">\x01\x00sdping" + x(8)}},
	{label: "source_engine", port: 27015, udp: true, says: []string{">\xff\xff\xff\xffTSource Engine Query\x00"}},
	{label: "worldofwarcraft", port: 3724, says: []string{"<\x30\x00WORLD OF WARCRAFT CONNECTION - SERVER TO CLIENT\x00"}},
	{label: "amongus", port: 22023, udp: true, says: []string{">\x08\x00\x01\x00\x46\xd2\x02\x03\x03bob" + x(4)}},
	{label: "cod_mobile", port: 7948, udp: true, says: []string{">abcdefg\x03ping"}},
	{label: "tencentgames", port: 8085, says: []string{">\x33\x66\x00\x0b" + x(8)}},
	{label: "riotgames", port: 8181, udp: true, says: []string{">" + x(28) + "\xaa\xaa\xaa\xaa\xbb\xbb\xbb\xbb"}},
	{label: "yojimbo", port: 40000, udp: true, says: []string{">\x00NETCODE 1.02\x00" + x(8)}},
	{label: "kcp", port: 4000, udp: true, says: []string{">" + l32(7) + "\x51\x00" + l16(128) + l32(1) + l32(0) + l32(0) + l32(3) + "abc"}},
	{label: "tes_online", port: 24500, says: []string{">" + in32(u16(1)+u16(0)+in32(x(20)))}, whole: true},
	{label: "tencentgames", port: 31003, says: []string{">\x42\x15\xf7\x87\x03\xe9" + in32(x(40))}},
	{label: "tencentgames", port: 8085, says: []string{">Cf" + tencentParts, "<" + tencentParts}},
	{label: "riotgames", port: 7194, udp: true, says: []string{
		">aaaabbbb" + l32(1) + z(24) + x(17), "<bbbb" + l32(1) + x(25)}},
	{label: "crynetwork", port: 21931, udp: true, says: []string{
		">\x3c\x00\x00\x0b\xf6" + z(11) + l32(1) + l32(7) + x(46), "<\x87" + z(31) + "\x02" + x(100)}},
	{label: "halflife2", port: 27015, udp: true, says: []string{">\xff\xff\xff\xffq" + x(8) + "0000000000\x00", "<\xff\xff\xff\xffA" + x(12) + "0000000\x00"}},
	{label: "heroes_of_the_storm", port: 3724, udp: true, says: []string{">" + stormMessage(7, 9), ">" + stormMessage(8, 12)}},
	{label: "lolwildrift", port: 15007, udp: true, says: []string{">" + l32(4) + x(65), "<" + l32(16) + x(355)}},
	{label: "lolwildrift", port: 18001, udp: true, says: []string{">\x01\x02\xc8\x41" + u32(1) + u16(1) + u32(100) + u16(4) + u16(4) + "A0B1"}},
	{label: "neteasegames", port: 28203, udp: true, says: []string{
		">\x07\x08\x08\x0csum1" + u32(0) + u32(1) + u16(0) + x(60), "<\x07\x08\x08\x0csum2" + u32(1) + u32(0x7e04) + u16(1) + x(60)}},
	{label: "neteasegames", port: 4513, udp: true, says: []string{">\x01\xb5\xd0\x01abcd\x00\x01\x01\x01", "<\x01\x14\xd3\x01abcdHA\x17\x01"}},
	{label: "neteasegames", port: 4170, udp: true, says: []string{">abcd\xff\x00" + x(24), "<abcd\xff\x00" + z(24)}},
	{label: "nintendo", port: 49152, udp: true, says: []string{">\x32\xab\x98\x64\x89" + x(40)}},
	{label: "genshinimpact", port: 22101, udp: true, says: []string{">" + u32(0xFF) + u32(0) + u32(0) + u32(1234567890) + u32(0xFFFFFFFF)}},
	{label: "genshinimpact", port: 22102, udp: true, says: []string{"<" + u32(0x145) + x(12) + u32(0x14514545)}},
	{label: "maplestory", port: 8484, says: []string{"<\x0e\x00" + l16(83) + l16(1) + "1" + x(8) + "\x08"}},
	{label: "starcraft", port: 1119, says: []string{">\x4a\x00\x00\x0a\x66\x02\x0a\xed\x2d\x66"}},
	{label: "gaijinentertainment", port: 8125, udp: true, says: []string{">launcher.start.total.count.of.everything,env=prod,circuit=live:1|c"}},
}

func FuzzGame(f *testing.F) { fuzzSamples(f, gameSamples) }
