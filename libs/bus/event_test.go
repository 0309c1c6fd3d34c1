package bus

import "testing"

func FuzzParseEvent(f *testing.F) {
	f.Add(SubjectAttack+"edge", []byte(`{"id":"a","type":"syn_flood","revision":1}`))
	f.Add(SubjectVerdict+"edge", []byte(`{"id":"v","rules":[{"id":"r","match":{"src":"192.0.2.1/32"}}],"evidence":{"features":{"pps":1e6}}}`))
	f.Add(SubjectEnforcement+"node", []byte(`{"id":"e","state":"ENFORCEMENT_STATE_APPLIED","later":1}`))
	f.Add(SubjectAudit+"gw", []byte(`{"id":"c","revision":2,"action":"rule.add","outcome":"AUDIT_OUTCOME_DONE","after":"{}"}`))
	f.Add("tg.v1.other", []byte(`{}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		m, err := parseEvent(subject, data)
		kinds := 0
		for _, set := range []bool{m.Attack != nil, m.Verdict != nil, m.Enforcement != nil, m.Audit != nil} {
			if set {
				kinds++
			}
		}
		if err == nil && kinds != 1 {
			t.Errorf("%d kinds for subject %q", kinds, subject)
		}
	})
}
