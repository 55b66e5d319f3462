--- End one session, or all of a user but one.
--
-- KEYS[1]  {v}:user:<id>   set    the user's sessions
-- ARGV[1]  hash of the one to end; '' = all
-- ARGV[2]  hash of the one to keep when all end; '' = none
-- Writes   {v}:session:<hash>
-- Returns  how many ended
-- Repeat   nothing left to end
-- Cost     O(sessions of the user)
local ended = 0
local hashes = {ARGV[1]}
if ARGV[1] == '' then hashes = redis.call('SMEMBERS', KEYS[1]) end
for _, hash in ipairs(hashes) do
  if hash ~= ARGV[2] then
    ended = ended + redis.call('DEL', '{v}:session:' .. hash)
    redis.call('SREM', KEYS[1], hash)
  end
end
return ended
