package app

import "testing"

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
	{label: "gaijinentertainment", port: 8125, udp: true, says: []string{">launcher.start.total.count.of.everything,env=prod,circuit=live:1|c"}},
}

func FuzzGame(f *testing.F) { fuzzSamples(f, gameSamples) }
