-- Store entries as they are.
-- KEYS[1]: the set of families. ARGV: prefix of the families, then family, id, stored value of each.
for i = 2, #ARGV, 3 do
    redis.call('SADD', KEYS[1], ARGV[i])
    redis.call('HSET', ARGV[1] .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
