--- Make a staged job known: states, hash, first event, first release.
-- Needs    birth
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3…]  name, value of the job's hash
-- Reads    P job:<id>:chunks
-- Writes   P job:<id>, P job:<id>:states, P sender:<id>, P sender:<id>:jobs, P turns, P timers,
--          P ready, P outcomes, P events, P changed, P low
-- Returns  {made | exists | missing, state, event, first missing chunk}
-- Repeat   an existing job is told and left
-- Cost     O(recipients) in one string operation
local fields = {}
for i = 3, #ARGV do fields[#fields + 1] = ARGV[i] end
return birth(ARGV[2], fields, '', 0, {})
