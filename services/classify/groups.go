package classify

import (
	"context"

	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

// ListGroups implements ClassifyService: the groups in the order of the configuration, the engine's own
// ("default") last, each with its configured thresholds and the hosts that have higher ones, because it
// is usual for them. When nothing is said to be protected, the only
// group is the engine's own, without prefixes.
func (s *Service) ListGroups(context.Context, *classifyv1.ListGroupsRequest) (*classifyv1.ListGroupsResponse, error) {
	list := s.engine.groups.list
	of := func(i int) *group { return &list[i] }
	if all := s.engine.groups.all; all != nil {
		list = []group{*all}
		of = func(int) *group { return all }
	}
	learned := s.engine.learned()
	r := &classifyv1.ListGroupsResponse{ConfigVersion: s.engine.version}
	for i := range list {
		g := &classifyv1.Group{Name: list[i].name, Thresholds: list[i].thresholds.Named(), Learned: learned[of(i)]}
		for _, p := range list[i].prefixes {
			g.Prefixes = append(g.Prefixes, p.String())
		}
		r.Groups = append(r.Groups, g)
	}
	return r, nil
}
